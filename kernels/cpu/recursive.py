"""A supervision step of a tiny recursive model in one compiled call (docs/arithmetic.md, rule 9).

Where there are puzzles enough a thread carries one through every pass of the network, in scratch
that stays in its core's own cache, and waits for nobody. The threads share each of fewer puzzles:
between attentions a pass takes rows one by one, so rows are dealt out, and within them heads.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from detinfer.kernels.cpu.activation import gate_row
from detinfer.kernels.cpu.attend_all import attend_rows, scratch_floats
from detinfer.kernels.cpu.finish import accumulate_rows, write_rows
from detinfer.kernels.cpu.fused.items import norm_rows, rotate
from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.matmul import (
    PANEL,
    ROWS,
    add_tree,
    embedding_row,
    panel_address,
    segments,
    tile_rows,
)
from detinfer.kernels.cpu.microkernel import TILE_ROWS, tile_f32
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.team import REGION, done_take, end_of, regions, take, wait
from detinfer.kernels.cpu.vector import div, f32_at

# Weights in tables: the address of each one's panels, and whether they are bfloat16.
LAYER = ("qkv", "out", "gate", "up", "down")
ENDS = ("embedding", "logits", "verdict")
QKV, OUT, GATE, UP, DOWN = range(5)
EMBEDDING, LOGITS, VERDICT = range(3)
# What the step unpacks: integers, then binary32.
DIMS = ("prefix", "heads", "inner", "cycles", "updates", "vocab", "verdicts", "norm_variant")
FACTORS = ("scale", "eps", "embedding", "bias")
MOST_HIDDEN = ROWS * PANEL  # a row of partial sums has room for so wide a state


@kernel
def _multiply(x, m, k, weight, add, n, out, parts, zeros):
    """``out[m, n] = x[m, k] @ weight.T``, or that added to it: rule 1.

    Flags come as values, never as literals, for which Numba would compile a copy each.
    """
    bf16, one = weight[1], np.float32(1)
    direct = not (add or bf16) and segments(k) == 1
    for panel in range((n + PANEL - 1) // PANEL):
        columns, w = min(PANEL, n - panel * PANEL), panel_address(weight[0], bf16, k, panel)
        following, target = panel_address(weight[0], bf16, k, panel + 1), out + panel * PANEL * 4
        if direct and columns == PANEL:
            tile_f32(m, x, k, w, PANEL, zeros, 0, target, n, k, following)
            continue
        for row in range(0, m, ROWS):
            rows, to = min(ROWS, m - row), target + row * n * 4
            tile_rows(rows, x + row * k * 4, k, w, bf16, following, zeros, parts)
            if add:
                accumulate_rows(rows, parts.ctypes.data, columns, 0, one, to, n)
            else:
                write_rows(rows, parts.ctypes.data, columns, 0, to, n)


@kernel
def _gated(x, m, k, gate, up, n, out, parts, ups, zeros):
    """``out[m, n] = silu(x @ gate.T) * (x @ up.T)``."""
    gelu = np.bool_(False)
    for panel in range((n + PANEL - 1) // PANEL):
        columns = min(PANEL, n - panel * PANEL)
        gates_w = panel_address(gate[0], gate[1], k, panel)
        ups_w = panel_address(up[0], up[1], k, panel)
        following = panel_address(gate[0], gate[1], k, panel + 1)
        for row in range(0, m, ROWS):
            rows = min(ROWS, m - row)
            tile_rows(rows, x + row * k * 4, k, gates_w, gate[1], ups_w, zeros, parts)
            tile_rows(rows, x + row * k * 4, k, ups_w, up[1], following, zeros, ups)
            for r in range(rows):
                at, to = r * PANEL * 4, out + ((row + r) * n + panel * PANEL) * 4
                gate_row(gelu, parts.ctypes.data + at, ups.ctypes.data + at, to, columns)


@kernel
def _attend(item, n, groups, heads, scale, wide, table, room, zeros, mixed):
    """Attention within one group of a kind, by one of that kind's share of the heads.

    ``wide`` has queries, keys and values of every token.
    """
    dim, share, stride = n // heads, heads // groups.shape[0], 3 * n * 4
    head, group = item % heads, item // heads
    q, to = wide + head * dim * 4, mixed + head * dim * 4
    attend_rows(q, q + n * 4, q + 2 * n * 4, stride, groups[head // share, group], dim, scale,
                table, room, zeros, to, n * 4)  # fmt: skip


@kernel
def _embed(board, first, count, prefix, n, weight, puzzle, factor, x):
    """Tokens from ``first`` on, times ``factor``. x [prefix + cells, n]"""
    numbers = f32_at(x + first * n * 4, count * n)
    for token in range(first, first + count):
        row = f32_at(x + token * n * 4, n)
        if token >= prefix:
            to = np.int64(board[token - prefix])
            embedding_row(to, n, weight[0], weight[1], x + token * n * 4)
        elif token == 0:
            row[:] = puzzle
        else:
            row[:] = np.float32(0)
    for i in range(numbers.size):
        numbers[i] = numbers[i] * factor


@kernel
def _begin(index, first, rows, n, layers, dims, cos, sin, x, y, z, wide, parts, zeros):
    """Put rows before the attention of the pass ``index``: the state, then its projections."""
    heads, updates = dims[1], dims[4]
    layer, at, size = index % layers.shape[0], first * n * 4, rows * n
    on_answer = index // layers.shape[0] % (updates + 1) == updates
    answer, latent = f32_at(y + at, size), f32_at(z + at, size)
    if layer == 0 and on_answer:
        for j in range(size):
            answer[j] = answer[j] + latent[j]
    elif layer == 0:
        given = f32_at(x + at, size)
        for j in range(size):
            latent[j] = latent[j] + (answer[j] + given[j])
    h, to = (y if on_answer else z) + at, wide + 3 * at
    _multiply(h, rows, n, layers[layer, QKV], np.bool_(False), 3 * n, to, parts, zeros)
    if cos:
        dim = n // heads
        for t in range(rows):
            turn = (first + t) * (dim // 2) * 4
            rotate(to + t * 3 * n * 4, 2 * heads, dim, dim, cos + turn, sin + turn)


@kernel
def _finish(index, first, rows, n, layers, dims, eps, y, z, mixed, gated, parts, ups, zeros):
    """Put rows through what comes after the attention of the pass ``index``."""
    inner, updates, variant = dims[2], dims[4], dims[7]
    layer, at = layers[index % layers.shape[0]], first * n * 4
    h = (y if index // layers.shape[0] % (updates + 1) == updates else z) + at
    add, none = np.bool_(True), np.int64(0)
    _multiply(mixed + at, rows, n, layer[OUT], add, n, h, parts, zeros)
    norm_rows(h, rows, n, none, eps, variant, h)
    _gated(h, rows, n, layer[GATE], layer[UP], inner, gated, parts, ups, zeros)
    _multiply(gated, rows, inner, layer[DOWN], add, n, h, parts, zeros)
    norm_rows(h, rows, n, none, eps, variant, h)


@kernel
def _mean(rows, count, n, parts, out):
    """Average over rows: rule 1 with weights of 1, then one division. [count, n] -> [n]"""
    s = segments(count)
    span = count // s
    for part in range(s):
        total = parts[part]
        total[:n] = np.float32(0)
        for row in range(part * span, (part + 1) * span):
            value = f32_at(rows + row * n * 4, n)
            for i in range(n):
                total[i] = total[i] + value[i]
    add_tree(parts, s, n)
    mean, total = f32_at(out, n), parts[0]
    for i in range(n):
        mean[i] = div(total[i], np.float32(count))


@kernel
def _answer(y, prefix, n, ends, vocab, verdicts, bias, grid, wide, parts, zeros):
    """Fill in the grid, -1 where logits are not finite, and return q."""
    write, cells = np.bool_(False), grid.size
    _multiply(y + prefix * n * 4, cells, n, ends[LOGITS], write, vocab, wide, parts, zeros)
    for cell in range(cells):
        logits, best, finite = f32_at(wide + cell * vocab * 4, vocab), 0, True
        for i in range(vocab):
            finite = finite and logits[i] < np.float32(np.inf)
            best = i if logits[i] > logits[best] else best
        grid[cell] = best if finite and logits[best] > np.float32(-np.inf) else -1
    read = y
    if not prefix:
        read = wide
        _mean(y, cells, n, parts, read)
    verdict = wide + n * 4
    _multiply(read, np.int64(1), n, ends[VERDICT], write, verdicts, verdict, parts, zeros)
    return f32_at(verdict, 1)[0] + bias


@kernel
def _passes(layers, dims):
    return dims[3] * (dims[4] + 1) * layers.shape[0]


@kernel
def _room_floats(tokens, n, dims):
    """Return how many floats ``_solve`` needs for a puzzle, whoever works on it."""
    widest = max(tokens * max(3 * n, dims[5]), n + dims[6])
    return 2 * tokens * n + widest


@kernel
def _solve(counters, start, size, i, board, y, z, layers, ends, dims, factors, puzzle, groups, cos,
           sin, zeros, rooms, own, grid, q):  # fmt: skip
    """Give one puzzle its step, or what nobody else does of it.

    Args:
        counters: of regions, 2 and 2 for each pass, the first of them ``start`` bytes on.
        size: rows that are one item.
        rooms: ``_room_floats``.  own: what this thread needs besides.

    Memory comes as arrays: whoever calls holds them until this is done.
    """
    prefix, heads, vocab, verdicts, n = dims[0], dims[1], dims[5], dims[6], puzzle.size
    tokens, passes = prefix + board.size, _passes(layers, dims)
    blocks, items = (tokens + size - 1) // size, heads * groups.shape[1]
    region, x = counters.ctypes.data + start, rooms.ctypes.data
    mixed, wide = x + tokens * n * 4, x + 2 * tokens * n * 4
    scratch, gates, table, parts, ups = own
    room, gated = scratch.ctypes.data, gates.ctypes.data
    for index in range(-1, passes):
        if index >= 0:
            region += REGION
            item = take(region, items)
            while item < items:
                _attend(item, n, groups, heads, factors[0], wide, table, room, zeros, mixed)
                item = done_take(region, items)
            wait(region, items)
            region += REGION
        block = take(region, blocks)
        while block < blocks:
            first = block * size
            rows = min(size, tokens - first)
            if index < 0:
                _embed(board, first, rows, prefix, n, ends[EMBEDDING], puzzle, factors[2], x)
            else:
                _finish(index, first, rows, n, layers, dims, factors[1], y, z, mixed, gated,
                        parts, ups, zeros)  # fmt: skip
            if index + 1 < passes:
                _begin(index + 1, first, rows, n, layers, dims, cos, sin, x, y, z, wide, parts,
                       zeros)  # fmt: skip
            block = done_take(region, blocks)
        wait(region, blocks)
    region += REGION
    if take(region, 1) == 0:
        q[i] = _answer(y, prefix, n, ends, vocab, verdicts, factors[3], grid, wide, parts, zeros)
        done_take(region, 1)
    wait(region, 1)


@kernel
def _run(team, end, share, rooms, size, boards, y, z, layers, ends, dims, factors, puzzle, groups,
         cos, sin, zeros, grids, q):  # fmt: skip
    """Return what every thread of the team runs. y and z: addresses of states, in place.

    ``team`` counts the regions of every puzzle, or those puzzles that are taken whole.
    """
    count, n = boards.shape[0], puzzle.size
    tokens, span = dims[0] + boards.shape[1], 2 + 2 * _passes(layers, dims)
    table, state = np.arange(tokens).astype(np.int32), tokens * n * 4
    parts, ups = np.empty((8, ROWS * PANEL), np.float32), np.empty((8, ROWS * PANEL), np.float32)
    scratch = np.empty(scratch_floats(groups.shape[2], n // dims[1]), np.float32)
    own = scratch, np.empty(size * dims[2], np.float32), table, parts, ups
    if share:
        for i in range(count):
            _solve(team, i * span * REGION + end, size, i, boards[i], y + i * state, z + i * state,
                   layers, ends, dims, factors, puzzle, groups, cos, sin, zeros, rooms, own,
                   grids[i], q)  # fmt: skip
        return
    alone, mine = regions(span), np.empty(_room_floats(tokens, n, dims), np.float32)
    region = team.ctypes.data + end
    i = take(region, count)
    while i < count:
        alone[:] = 0
        _solve(alone, 0, size, i, boards[i], y + i * state, z + i * state, layers, ends, dims,
               factors, puzzle, groups, cos, sin, zeros, mine, own, grids[i], q)  # fmt: skip
        i = done_take(region, count)


@parallel_kernel
def step(threads, boards, y, z, layers, ends, dims, factors, puzzle, groups, cos, sin, zeros,
         grids, q):  # fmt: skip
    """Give every puzzle one supervision step.

    Args:
        threads: size of the team.
        boards: token ids. [B, cells] int8
        y, z: states, updated in place. [B, tokens, D]
        layers: weights as LAYER names them. [layers, 5, 2] int64
        ends: those before and after the layers, as ENDS names them. [3, 2] int64
        dims, factors: DIMS (int64) and FACTORS (binary32).
        puzzle: what a prefix begins with, zeros where there is none. [D]
        groups: tokens that attend to one another, for each kind of heads. [kinds, n, size] int64
        cos, sin: addresses of every token's. [tokens, D / heads / 2], or 0
        zeros: 64 zeros.
        grids: out, -1 where logits are not finite. [B, cells] int8
        q: out. [B]
    """
    count, n = boards.shape[0], puzzle.size
    tokens, share = dims[0] + boards.shape[1], count < threads
    # A whole tile of rows at least, or all of a puzzle.
    size = tokens
    if share:
        size = ((tokens + threads - 1) // threads + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    each = 2 + 2 * _passes(layers, dims)
    team = regions(count * each if share else 1)
    rooms = np.empty(_room_floats(tokens, n, dims) if share else 1, np.float32)
    zero, y0, z0 = zeros.ctypes.data, y.ctypes.data, z.ctypes.data
    for thread in prange(threads):
        before = enter()
        _run(team, end_of(thread, threads), share, rooms, size, boards, y0, z0, layers, ends, dims,
             factors, puzzle, groups, cos, sin, zero, grids, q)  # fmt: skip
        leave(before)
