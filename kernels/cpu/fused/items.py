"""What one item of the fused step computes: a panel, a token, a row."""

from __future__ import annotations

import numpy as np

from detinfer.kernels.cpu.activation import gate_row, tanh_row
from detinfer.kernels.cpu.finish import accumulate_rows, write_rows
from detinfer.kernels.cpu.fused.table import (
    BFLOAT16,
    COS,
    K_CACHE,
    K_NORM,
    Q_NORM,
    SIN,
    V_CACHE,
)
from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.matmul import PANEL, ROWS, row_blocks, segments, tile_rows
from detinfer.kernels.cpu.norms import rms_norm_row
from detinfer.kernels.cpu.packed.linear import block_rows
from detinfer.kernels.cpu.packed.rows import TILE_ROWS, quantise_groups, tile_offset
from detinfer.kernels.cpu.packed.tile import call_tile
from detinfer.kernels.cpu.pages import write_cache
from detinfer.kernels.cpu.vector import div, f32_at


@kernel
def norm_rows(x, rows, n, w, eps, variant, out):
    for row in range(rows):
        rms_norm_row(x + row * n * 4, n, w, eps, variant, out + row * n * 4)


@kernel
def _panel(linear, panel):
    return linear[0] + panel * linear[2]


@kernel
def _sums(row, rows, x, quantised, k, tile, w, following, zeros, parts):
    """Put the finished sums of ``rows`` x 64 outputs, from ``row`` on, at the front of ``parts``.

    ``x`` and ``quantised`` are the same rows, for weights in panels and for those in blocks; ``w``
    is a panel, and ``following`` the one that is read next.
    """
    if tile > BFLOAT16:
        at = quantised + tile_offset(row // TILE_ROWS, k)
        call_tile(tile, rows, at, w, k // 32, segments(k), parts.ctypes.data)
    else:
        tile_rows(rows, x + row * k * 4, k, w, tile, following, zeros, parts)


@kernel
def linear_item(item, step, x, quantised, m, k, linear, n, add, factor, out, zeros):
    """One (panel, row block) of ``out = linear(x)``, or of ``out += linear(x) * factor``.

    ``linear`` is a layer's table.LINEAR; the panel read next is ``step`` further. Flags and
    addresses come as values, never as literals, for which Numba would compile a copy each.
    """
    panel, start = item // row_blocks(m), item % row_blocks(m) * block_rows(m)
    stop, columns = min(m, start + block_rows(m)), min(PANEL, n - panel * PANEL)
    bias = linear[3] + panel * PANEL * 4 if linear[3] else linear[3]
    parts = np.empty((segments(k), ROWS * PANEL), np.float32)
    together = TILE_ROWS if linear[1] > BFLOAT16 else ROWS
    w, following = _panel(linear, panel), _panel(linear, panel + step)
    for row in range(start, stop, together):
        rows, target = min(together, stop - row), out + (row * n + panel * PANEL) * 4
        _sums(row, rows, x, quantised, k, linear[1], w, following, zeros, parts)
        if add:
            accumulate_rows(rows, parts.ctypes.data, columns, bias, factor, target, n)
        else:
            write_rows(rows, parts.ctypes.data, columns, bias, target, n)


@kernel
def gated_item(item, step, x, quantised, m, k, gate, up, n, gelu, out, out_quantised, zeros):
    """One (panel, row block) of ``act(gate) * up``, quantised too where there is a place for it."""
    panel, start = item // row_blocks(m), item % row_blocks(m) * block_rows(m)
    stop, columns = min(m, start + block_rows(m)), min(PANEL, n - panel * PANEL)
    gates = np.empty((segments(k), ROWS * PANEL), np.float32)
    ups = np.empty((segments(k), ROWS * PANEL), np.float32)
    together = TILE_ROWS if max(gate[1], up[1]) > BFLOAT16 else ROWS
    left, right, following = _panel(gate, panel), _panel(up, panel), _panel(gate, panel + step)
    for row in range(start, stop, together):
        rows = min(together, stop - row)
        _sums(row, rows, x, quantised, k, gate[1], left, right, zeros, gates)
        _sums(row, rows, x, quantised, k, up[1], right, following, zeros, ups)
        for r in range(rows):
            at, target = r * PANEL * 4, out + ((row + r) * n + panel * PANEL) * 4
            gate_row(gelu, gates.ctypes.data + at, ups.ctypes.data + at, target, columns)
            if out_quantised:
                first = panel * PANEL // 32
                quantise_groups(target, row + r, m, n, first, columns // 32, out_quantised)


@kernel
def rotate(x, heads, head_dim, rotary, cos, sin):
    """Rotate one token's heads in place: rounded products, one addition."""
    half = rotary // 2
    c, s = f32_at(cos, half), f32_at(sin, half)
    for head in range(heads):
        row = f32_at(x + head * head_dim * 4, rotary)
        for i in range(half):
            first, second = row[i], row[i + half]
            row[i] = first * c[i] + (-second) * s[i]
            row[i + half] = second * c[i] + first * s[i]


@kernel
def prepare_token(t, q, k, v, layer, heads, kv_heads, head_dim, rotary, eps, variant, wide,
                   position, table, cache_size):  # fmt: skip
    """Norm and rotate one token's queries and keys, then write its keys and values to the cache."""
    q_row, k_row = q + t * heads * head_dim * 4, k + t * kv_heads * head_dim * 4
    for row, count, weight in ((q_row, heads, layer[Q_NORM]), (k_row, kv_heads, layer[K_NORM])):
        if weight and wide:
            rms_norm_row(row, count * head_dim, weight, eps, variant, row)
        elif weight:
            norm_rows(row, count, head_dim, weight, eps, variant, row)
    if layer[COS]:
        cos = layer[COS] + position * (rotary // 2) * 4
        sin = layer[SIN] + position * (rotary // 2) * 4
        rotate(q_row, heads, head_dim, rotary, cos, sin)
        rotate(k_row, kv_heads, head_dim, rotary, cos, sin)
    write_cache(k_row, v + t * kv_heads * head_dim * 4, position, table, kv_heads, head_dim,
                head_dim, layer[K_CACHE], layer[V_CACHE], cache_size)  # fmt: skip


@kernel
def add_rows(h, y, count, factor):
    target, source = f32_at(h, count), f32_at(y, count)
    for i in range(count):
        target[i] = target[i] + source[i] * factor


@kernel
def finish_logits(row, vocab, divisor, factor, softcap):
    """Scale one row of logits in place, as the model does."""
    x = f32_at(row, vocab)
    if divisor != np.float32(1):
        for i in range(vocab):
            x[i] = div(x[i], divisor)
    if factor != np.float32(1):
        for i in range(vocab):
            x[i] = x[i] * factor
    if softcap > np.float32(0):
        for i in range(vocab):
            x[i] = div(x[i], softcap)
        tanh_row(row, row, vocab)
        for i in range(vocab):
            x[i] = x[i] * softcap
