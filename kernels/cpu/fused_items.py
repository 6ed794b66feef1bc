"""What one item of the fused step computes: a panel, a token, a row."""

from __future__ import annotations

import numpy as np

from detinfer.kernels.cpu.activation import gate_row, tanh_row
from detinfer.kernels.cpu.attention import write_cache
from detinfer.kernels.cpu.fused_table import COS, GATE, K_CACHE, K_NORM, Q_NORM, SIN, UP, V_CACHE
from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.matmul import PANEL, ROWS, panel_address, row_blocks, segments, tile_rows
from detinfer.kernels.cpu.norms import rms_norm_row
from detinfer.kernels.cpu.vector import div, f32_at


@kernel
def norm_rows(x, rows, n, w, eps, variant, out):
    for row in range(rows):
        rms_norm_row(x + row * n * 4, n, w, eps, variant, out + row * n * 4)


@kernel
def linear_item(item, x, m, k, linear, n, add, factor, out, zeros):
    """One (panel, row block) of ``out = linear(x)``, or of ``out += linear(x) * factor``.

    ``linear`` is (address, is bf16, bias address). Flags and addresses come as values, never as
    literals, for which Numba would compile a copy each.
    """
    blocks = row_blocks(m)
    size = (m + blocks - 1) // blocks
    panel, start = item // blocks, item % blocks * size
    w, bf16, bias = linear[0], linear[1], linear[2]
    weights = panel_address(w, bf16, k, panel)
    columns = min(PANEL, n - panel * PANEL)
    parts = np.empty((segments(k), ROWS * PANEL), np.float32)
    for row in range(start, min(m, start + size), ROWS):
        rows = min(ROWS, min(m, start + size) - row)
        tile_rows(rows, x + row * k * 4, k, weights, bf16, zeros, parts)
        for r in range(rows):
            source = parts[0][r * PANEL : (r + 1) * PANEL]
            target = f32_at(out + ((row + r) * n + panel * PANEL) * 4, columns)
            if bias:
                added = f32_at(bias + panel * PANEL * 4, columns)
                for j in range(columns):
                    source[j] = source[j] + added[j]
            if add:
                for j in range(columns):
                    target[j] = target[j] + source[j] * factor
            else:
                for j in range(columns):
                    target[j] = source[j]


@kernel
def gated_item(item, x, m, k, layer, n, gelu, out, zeros):
    """One (panel, row block) of ``act(gate) * up``."""
    blocks = row_blocks(m)
    size = (m + blocks - 1) // blocks
    panel, start = item // blocks, item % blocks * size
    gates = panel_address(layer[GATE], layer[GATE + 1], k, panel)
    ups = panel_address(layer[UP], layer[UP + 1], k, panel)
    columns = min(PANEL, n - panel * PANEL)
    gate_parts = np.empty((segments(k), ROWS * PANEL), np.float32)
    up_parts = np.empty((segments(k), ROWS * PANEL), np.float32)
    for row in range(start, min(m, start + size), ROWS):
        rows = min(ROWS, min(m, start + size) - row)
        at = x + row * k * 4
        tile_rows(rows, at, k, gates, layer[GATE + 1], zeros, gate_parts)
        tile_rows(rows, at, k, ups, layer[UP + 1], zeros, up_parts)
        for r in range(rows):
            tile = r * PANEL * 4
            target = out + ((row + r) * n + panel * PANEL) * 4
            gate, up = gate_parts.ctypes.data + tile, up_parts.ctypes.data + tile
            gate_row(gelu, gate, up, target, columns)


@kernel
def _rotate(x, heads, head_dim, rotary, cos, sin):
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
                   position, table):  # fmt: skip
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
        _rotate(q_row, heads, head_dim, rotary, cos, sin)
        _rotate(k_row, kv_heads, head_dim, rotary, cos, sin)
    write_cache(k_row, v + t * kv_heads * head_dim * 4, position, table, kv_heads, head_dim,
                head_dim, layer[K_CACHE], layer[V_CACHE])  # fmt: skip


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
