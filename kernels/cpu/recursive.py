"""A supervision step of a tiny recursive model in one compiled call (docs/arithmetic.md, rule 9).

An item is a puzzle: a thread carries it through every pass of the network, in scratch that stays in
a core's own cache. No thread waits for another before the end.
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
from detinfer.kernels.cpu.microkernel import tile_f32
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.team import done_take, end_of, regions, take
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
def _mix(tokens, n, groups, heads, cos, sin, scale, wide, table, room, zeros, out):
    """Attention within the groups of each kind, by that kind's share of the heads.

    ``wide`` has queries, keys and values of every token.
    """
    dim, share, stride = n // heads, heads // groups.shape[0], 3 * n * 4
    if cos:
        for t in range(tokens):
            at = t * (dim // 2) * 4
            rotate(wide + t * stride, 2 * heads, dim, dim, cos + at, sin + at)
    for kind in range(groups.shape[0]):
        for group in range(groups.shape[1]):
            for head in range(kind * share, (kind + 1) * share):
                q, to = wide + head * dim * 4, out + head * dim * 4
                attend_rows(q, q + n * 4, q + 2 * n * 4, stride, groups[kind, group], dim, scale,
                            table, room, zeros, to, n * 4)  # fmt: skip


@kernel
def _net(h, tokens, n, layers, dims, factors, groups, cos, sin, table, rooms, parts, ups, zeros):
    """Put a state through every layer, in place."""
    heads, inner, variant, eps = dims[1], dims[2], dims[7], factors[1]
    write, add, none = np.bool_(False), np.bool_(True), np.int64(0)
    mixed, wide, room = rooms
    for index in range(layers.shape[0]):
        layer = layers[index]
        _multiply(h, tokens, n, layer[QKV], write, 3 * n, wide, parts, zeros)
        _mix(tokens, n, groups, heads, cos, sin, factors[0], wide, table, room, zeros, mixed)
        _multiply(mixed, tokens, n, layer[OUT], add, n, h, parts, zeros)
        norm_rows(h, tokens, n, none, eps, variant, h)
        _gated(h, tokens, n, layer[GATE], layer[UP], inner, wide, parts, ups, zeros)
        _multiply(wide, tokens, inner, layer[DOWN], add, n, h, parts, zeros)
        norm_rows(h, tokens, n, none, eps, variant, h)


@kernel
def _embed(board, prefix, n, weight, puzzle, factor, x):
    """Tokens times ``factor``. x [prefix + cells, n]"""
    numbers = f32_at(x, (prefix + board.size) * n)
    numbers[: prefix * n] = np.float32(0)
    if prefix:
        numbers[:n] = puzzle
    for cell in range(board.size):
        to = x + (prefix + cell) * n * 4
        embedding_row(np.int64(board[cell]), n, weight[0], weight[1], to)
    for i in range(numbers.size):
        numbers[i] = numbers[i] * factor


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
def _run(region, boards, y, z, layers, ends, dims, factors, puzzle, groups, cos, sin, zeros,
         grids, q):  # fmt: skip
    """Return what every thread of the team runs. y and z: addresses of states, in place."""
    prefix, heads, inner, cycles, updates, vocab, verdicts, _ = dims
    count, n = boards.shape[0], puzzle.size
    tokens = prefix + boards.shape[1]
    state, table = tokens * n, np.arange(tokens).astype(np.int32)
    parts, ups = np.empty((8, ROWS * PANEL), np.float32), np.empty((8, ROWS * PANEL), np.float32)
    widest = max(tokens * max(3 * n, inner, vocab), n + verdicts)
    room = scratch_floats(groups.shape[2], n // heads)
    scratch = np.empty(2 * state + widest + room, np.float32)
    x = scratch.ctypes.data
    rooms = x + state * 4, x + 2 * state * 4, x + (2 * state + widest) * 4
    given = f32_at(x, state)
    i = take(region, count)
    while i < count:
        at_y, at_z = y + i * state * 4, z + i * state * 4
        answer, latent = f32_at(at_y, state), f32_at(at_z, state)
        _embed(boards[i], prefix, n, ends[EMBEDDING], puzzle, factors[2], x)
        for _ in range(cycles):
            for _ in range(updates):
                for j in range(state):
                    latent[j] = latent[j] + (answer[j] + given[j])
                _net(at_z, tokens, n, layers, dims, factors, groups, cos, sin, table, rooms,
                     parts, ups, zeros)  # fmt: skip
            for j in range(state):
                answer[j] = answer[j] + latent[j]
            _net(at_y, tokens, n, layers, dims, factors, groups, cos, sin, table, rooms, parts,
                 ups, zeros)  # fmt: skip
        q[i] = _answer(at_y, prefix, n, ends, vocab, verdicts, factors[3], grids[i],
                       x + 2 * state * 4, parts, zeros)  # fmt: skip
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
    team, zero, y0, z0 = regions(1), zeros.ctypes.data, y.ctypes.data, z.ctypes.data
    for thread in prange(threads):
        before = enter()
        region = team.ctypes.data + end_of(thread, threads)
        _run(region, boards, y0, z0, layers, ends, dims, factors, puzzle, groups, cos, sin, zero,
             grids, q)  # fmt: skip
        leave(before)
