"""One forward step of the Llama pattern in one compiled call (docs/arithmetic.md).

Swapped modules leave Python and small tensor calls between the kernels: half of a token's time at
batch 1. Here the layer loop itself is compiled and runs over a table of addresses of the very
weights those modules hold. Each operation rounds where the modules' own code rounds.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from detinfer.kernels.cpu.activation import activation_row, gate_row
from detinfer.kernels.cpu.attention import attend, write_cache
from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.matmul import (
    PANEL,
    ROWS,
    embedding_row,
    panel_address,
    row_blocks,
    segments,
    tile_rows,
)
from detinfer.kernels.cpu.norms import rms_norm_row
from detinfer.kernels.cpu.vector import div, f32_at

# A linear layer in the table: address, is bf16, bias address (0: none).
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
# A norm's weight address; 0 where the layer has no such norm.
NORMS = ("input", "q", "k", "post_attention", "pre_mlp", "post_mlp")
OTHERS = ("window", "cos", "sin", "k_cache", "v_cache")
COLUMNS = tuple(
    [f"{name}.{part}" for name in LINEARS for part in ("address", "bf16", "bias")]
    + [f"{name}_norm" for name in NORMS]
    + list(OTHERS)
)
Q, K, V, OUT, GATE, UP, DOWN = range(0, 3 * len(LINEARS), 3)
INPUT_NORM, Q_NORM, K_NORM, POST_ATTENTION, PRE_MLP, POST_MLP = range(21, 27)
WINDOW, COS, SIN, K_CACHE, V_CACHE = range(27, 32)

DIMS = ("hidden", "heads", "kv_heads", "head_dim", "rotary", "inner", "vocab", "norm_variant",
        "wide_qk_norm", "gelu", "embedding", "embedding_bf16", "final_norm", "head",
        "head_bf16")  # fmt: skip
FACTORS = ("eps", "scale", "attention_softcap", "embedding", "residual", "logits_divisor",
           "logits_factor", "final_softcap")  # fmt: skip
SERIAL_ROWS = 4  # up to here a parallel region costs more than the norms or rotations it shares out

PLAIN, ADD = 0, 1  # what becomes of a finished tile: stored, or added to the residual stream


@kernel
def _norm_rows(x, rows, n, w, eps, variant, out):
    for row in range(rows):
        rms_norm_row(x + row * n * 4, n, w, eps, variant, out + row * n * 4)


@kernel
def _linear_item(item, x, m, k, layer, column, n, mode, factor, out, zeros):
    """One (panel, row block) of a linear layer; ``layer`` is its row of the table."""
    blocks = row_blocks(m)
    size = (m + blocks - 1) // blocks
    panel, start = item // blocks, item % blocks * size
    w, bf16, bias = layer[column], layer[column + 1], layer[column + 2]
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
            if mode == ADD:
                for j in range(columns):
                    target[j] = target[j] + source[j] * factor
            else:
                for j in range(columns):
                    target[j] = source[j]


@kernel
def _gated_item(item, x, m, k, layer, n, gelu, out, zeros):
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
def _panels(n, m):
    return (n + PANEL - 1) // PANEL * row_blocks(m)


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
def _prepare_token(t, q, k, v, layer, heads, kv_heads, head_dim, rotary, eps, variant, wide,
                   position, table):  # fmt: skip
    """Norm and rotate one token's queries and keys, then write its keys and values to the cache."""
    q_row, k_row = q + t * heads * head_dim * 4, k + t * kv_heads * head_dim * 4
    for row, count, weight in ((q_row, heads, layer[Q_NORM]), (k_row, kv_heads, layer[K_NORM])):
        if weight and wide:
            rms_norm_row(row, count * head_dim, weight, eps, variant, row)
        elif weight:
            _norm_rows(row, count, head_dim, weight, eps, variant, row)
    if layer[COS]:
        cos = layer[COS] + position * (rotary // 2) * 4
        sin = layer[SIN] + position * (rotary // 2) * 4
        _rotate(q_row, heads, head_dim, rotary, cos, sin)
        _rotate(k_row, kv_heads, head_dim, rotary, cos, sin)
    write_cache(k_row, v + t * kv_heads * head_dim * 4, position, table, kv_heads, head_dim,
                head_dim, layer[K_CACHE], layer[V_CACHE])  # fmt: skip


@kernel
def _add_rows(h, y, count, factor):
    target, source = f32_at(h, count), f32_at(y, count)
    for i in range(count):
        target[i] = target[i] + source[i] * factor


@kernel
def _finish_logits(row, vocab, divisor, factor, softcap):
    """The model's own scaling of one row of logits, in place."""
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
        activation_row(2, row, row, vocab)
        for i in range(vocab):
            x[i] = x[i] * softcap


@parallel_kernel
def step(ids, positions, sequences, tables, items, logit_rows, layers, dims, factors,
         h, x, q, k, v, a, inner, zeros, logits):  # fmt: skip
    """Logits of ``logit_rows`` after running every layer over a batch.

    Args:
        ids, positions, sequences: token id, position and sequence of each flat row. [T]
        tables: page ids. [R, max pages]
        items: the attention plan of ``attention.plan``.
        layers: the table of COLUMNS. [layers, 32] int64
        dims, factors: DIMS (int64) and FACTORS (binary32).
        h, x, q, k, v, a, inner: scratch of T rows of the layer's widths.
        logits: out. [L, vocab]
    """
    hidden, heads, kv_heads, head_dim, rotary = dims[0], dims[1], dims[2], dims[3], dims[4]
    n_inner, vocab, variant, wide, gelu = dims[5], dims[6], dims[7], dims[8], dims[9]
    eps, scale, softcap, residual = factors[0], factors[1], factors[2], factors[4]
    m = ids.size
    h0, x0, q0, k0, v0 = h.ctypes.data, x.ctypes.data, q.ctypes.data, k.ctypes.data, v.ctypes.data
    a0, i0, zero, out0 = a.ctypes.data, inner.ctypes.data, zeros.ctypes.data, logits.ctypes.data
    q_width, kv_width = heads * head_dim, kv_heads * head_dim
    q_items, kv_items = _panels(q_width, m), _panels(kv_width, m)
    row_bytes = hidden * 4

    for t in prange(m):
        embedding_row(ids[t], hidden, dims[10], dims[11], h0 + t * row_bytes)
        if factors[3] != np.float32(1):
            row = f32_at(h0 + t * row_bytes, hidden)
            for i in range(hidden):
                row[i] = row[i] * factors[3]

    for index in range(layers.shape[0]):
        layer = layers[index]

        source = h0
        if layer[INPUT_NORM]:
            source = x0
            if m <= SERIAL_ROWS:
                _norm_rows(h0, m, hidden, layer[INPUT_NORM], eps, variant, x0)
            else:
                for t in prange(m):
                    rms_norm_row(h0 + t * row_bytes, hidden, layer[INPUT_NORM], eps, variant,
                                 x0 + t * row_bytes)  # fmt: skip
        for item in prange(q_items + 2 * kv_items):
            if item < q_items:
                _linear_item(item, source, m, hidden, layer, Q, q_width, PLAIN, eps, q0, zero)
            elif item < q_items + kv_items:
                _linear_item(item - q_items, source, m, hidden, layer, K, kv_width, PLAIN, eps,
                             k0, zero)  # fmt: skip
            else:
                _linear_item(item - q_items - kv_items, source, m, hidden, layer, V, kv_width,
                             PLAIN, eps, v0, zero)  # fmt: skip
        if m <= SERIAL_ROWS:
            for t in range(m):
                _prepare_token(t, q0, k0, v0, layer, heads, kv_heads, head_dim, rotary, eps,
                               variant, wide, positions[t], tables[sequences[t]])  # fmt: skip
        else:
            for t in prange(m):
                _prepare_token(t, q0, k0, v0, layer, heads, kv_heads, head_dim, rotary, eps,
                               variant, wide, positions[t], tables[sequences[t]])  # fmt: skip
        for i in prange(items.shape[0]):
            r, first, rows, head = items[i, 0], items[i, 1], items[i, 2], items[i, 3]
            at = first * q_width * 4
            attend(q0 + at, a0 + at, rows, positions[first], head, heads, kv_heads, head_dim,
                   head_dim, tables[r], layer[K_CACHE], layer[V_CACHE], scale, layer[WINDOW],
                   softcap, 0, zero)  # fmt: skip
        if layer[POST_ATTENTION]:
            for item in prange(_panels(hidden, m)):
                _linear_item(item, a0, m, q_width, layer, OUT, hidden, PLAIN, eps, x0, zero)
            for t in prange(m):
                at = x0 + t * row_bytes
                rms_norm_row(at, hidden, layer[POST_ATTENTION], eps, variant, at)
                _add_rows(h0 + t * row_bytes, at, hidden, residual)
        else:
            for item in prange(_panels(hidden, m)):
                _linear_item(item, a0, m, q_width, layer, OUT, hidden, ADD, residual, h0, zero)

        source = h0
        if layer[PRE_MLP]:
            source = x0
            if m <= SERIAL_ROWS:
                _norm_rows(h0, m, hidden, layer[PRE_MLP], eps, variant, x0)
            else:
                for t in prange(m):
                    rms_norm_row(h0 + t * row_bytes, hidden, layer[PRE_MLP], eps, variant,
                                 x0 + t * row_bytes)  # fmt: skip
        for item in prange(_panels(n_inner, m)):
            _gated_item(item, source, m, hidden, layer, n_inner, gelu, i0, zero)
        if layer[POST_MLP]:
            for item in prange(_panels(hidden, m)):
                _linear_item(item, i0, m, n_inner, layer, DOWN, hidden, PLAIN, eps, x0, zero)
            for t in prange(m):
                at = x0 + t * row_bytes
                rms_norm_row(at, hidden, layer[POST_MLP], eps, variant, at)
                _add_rows(h0 + t * row_bytes, at, hidden, residual)
        else:
            for item in prange(_panels(hidden, m)):
                _linear_item(item, i0, m, n_inner, layer, DOWN, hidden, ADD, residual, h0, zero)

    count = logit_rows.size
    for i in range(count):
        rms_norm_row(h0 + logit_rows[i] * row_bytes, hidden, dims[12], eps, variant,
                     x0 + i * row_bytes)  # fmt: skip
    head = np.zeros(3, np.int64)
    head[0], head[1] = dims[13], dims[14]
    for item in prange(_panels(vocab, count)):
        _linear_item(item, x0, count, hidden, head, 0, vocab, PLAIN, eps, out0, zero)
    if factors[5] != np.float32(1) or factors[6] != np.float32(1) or factors[7] > np.float32(0):
        for i in prange(count):
            _finish_logits(out0 + i * vocab * 4, vocab, factors[5], factors[6], factors[7])
