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
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.team import REGION, done_take, regions, take, wait
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
LAYER_REGIONS, OTHER_REGIONS = 10, 4  # what _run numbers off


@kernel
def _norm_rows(x, rows, n, w, eps, variant, out):
    for row in range(rows):
        rms_norm_row(x + row * n * 4, n, w, eps, variant, out + row * n * 4)


@kernel
def _linear_item(item, x, m, k, linear, n, add, factor, out, zeros):
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
    """Return the model's own scaling of one row of logits, in place."""
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


@kernel
def _embed(region, ids, n, w, bf16, factor, out):
    t = take(region)
    while t < ids.size:
        embedding_row(ids[t], n, w, bf16, out + t * n * 4)
        if factor != np.float32(1):
            row = f32_at(out + t * n * 4, n)
            for i in range(n):
                row[i] = row[i] * factor
        t = done_take(region)
    wait(region, ids.size)


@kernel
def _norm(region, x, rows, n, w, eps, variant, out):
    """Norm every row, or nothing without a weight; returns where the result is."""
    if w == 0:
        return x
    row = take(region)
    while row < rows:
        rms_norm_row(x + row * n * 4, n, w, eps, variant, out + row * n * 4)
        row = done_take(region)
    wait(region, rows)
    return out


@kernel
def _norm_and_add(region, h, x, rows, n, w, eps, variant, factor):
    """Add norm(x) * factor to h, row by row; x is overwritten."""
    row = take(region)
    while row < rows:
        at = x + row * n * 4
        rms_norm_row(at, n, w, eps, variant, at)
        _add_rows(h + row * n * 4, at, n, factor)
        row = done_take(region)
    wait(region, rows)


@kernel
def _linear(region, x, m, k, linear, n, add, factor, out, zeros):
    count = _panels(n, m)
    item = take(region)
    while item < count:
        _linear_item(item, x, m, k, linear, n, add, factor, out, zeros)
        item = done_take(region)
    wait(region, count)


@kernel
def _linear_and_add(region, x, m, k, linear, n, norm, eps, variant, factor, scratch, h, zeros):
    """Add linear(x) * factor to h, through the norm after it if the layer has one."""
    direct = norm == 0
    out = h if direct else scratch
    _linear(region, x, m, k, linear, n, direct, factor, out, zeros)
    if not direct:
        _norm_and_add(region + REGION, h, scratch, m, n, norm, eps, variant, factor)


@kernel
def _queries_keys_values(region, x, m, k, layer, q_width, kv_width, q, keys, values, zeros):
    q_items, kv_items = _panels(q_width, m), _panels(kv_width, m)
    one, add = np.float32(1), np.bool_(False)
    count = q_items + 2 * kv_items
    item = take(region)
    while item < count:
        at, linear, width, out = item, layer[Q : Q + 3], q_width, q
        if item >= q_items + kv_items:
            at, linear, width, out = at - q_items - kv_items, layer[V : V + 3], kv_width, values
        elif item >= q_items:
            at, linear, width, out = at - q_items, layer[K : K + 3], kv_width, keys
        _linear_item(at, x, m, k, linear, width, add, one, out, zeros)
        item = done_take(region)
    wait(region, count)


@kernel
def _gated(region, x, m, k, layer, n, gelu, out, zeros):
    count = _panels(n, m)
    item = take(region)
    while item < count:
        _gated_item(item, x, m, k, layer, n, gelu, out, zeros)
        item = done_take(region)
    wait(region, count)


@kernel
def _prepare(region, m, q, k, v, layer, heads, kv_heads, head_dim, rotary, eps, variant, wide,
             positions, sequences, tables):  # fmt: skip
    t = take(region)
    while t < m:
        _prepare_token(t, q, k, v, layer, heads, kv_heads, head_dim, rotary, eps, variant, wide,
                       positions[t], tables[sequences[t]])  # fmt: skip
        t = done_take(region)
    wait(region, m)


@kernel
def _attend(region, items, q, out, positions, heads, kv_heads, head_dim, tables, layer, scale,
            softcap, zeros):  # fmt: skip
    i = take(region)
    while i < items.shape[0]:
        r, first, rows, head = items[i, 0], items[i, 1], items[i, 2], items[i, 3]
        at = first * heads * head_dim * 4
        attend(q + at, out + at, rows, positions[first], head, heads, kv_heads, head_dim,
               head_dim, tables[r], layer[K_CACHE], layer[V_CACHE], scale, layer[WINDOW],
               softcap, np.int64(0), zeros)  # fmt: skip
        i = done_take(region)
    wait(region, items.shape[0])


@kernel
def _final_norm(region, h, logit_rows, n, w, eps, variant, out):
    """Norm the rows that need logits, closed up."""
    i = take(region)
    while i < logit_rows.size:
        rms_norm_row(h + logit_rows[i] * n * 4, n, w, eps, variant, out + i * n * 4)
        i = done_take(region)
    wait(region, logit_rows.size)


@kernel
def _finish(region, rows, out, vocab, divisor, factor, softcap):
    row = take(region)
    while row < rows:
        _finish_logits(out + row * vocab * 4, vocab, divisor, factor, softcap)
        row = done_take(region)
    wait(region, rows)


@kernel
def _run(team, ids, positions, sequences, tables, items, logit_rows, layers, dims, factors,
         h, x, q, k, v, a, inner, zeros, logits):  # fmt: skip
    """Return what every thread of the team runs; ``team`` holds the regions' counters."""
    first = team.ctypes.data
    (hidden, heads, kv_heads, head_dim, rotary, n_inner, vocab, variant, wide, gelu,
     embedding, embedding_bf16, final_norm, head, head_bf16) = dims  # fmt: skip
    (eps, scale, attention_softcap, embedding_factor, residual, logits_divisor, logits_factor,
     final_softcap) = factors  # fmt: skip
    m, count = ids.size, logit_rows.size
    q_width, kv_width = heads * head_dim, kv_heads * head_dim

    _embed(first, ids, hidden, embedding, embedding_bf16, embedding_factor, h)
    region = first + REGION
    for index in range(layers.shape[0]):
        layer = layers[index]
        source = _norm(region, h, m, hidden, layer[INPUT_NORM], eps, variant, x)
        _queries_keys_values(region + REGION, source, m, hidden, layer, q_width, kv_width, q, k,
                             v, zeros)  # fmt: skip
        _prepare(region + 2 * REGION, m, q, k, v, layer, heads, kv_heads, head_dim, rotary, eps,
                 variant, wide, positions, sequences, tables)  # fmt: skip
        _attend(region + 3 * REGION, items, q, a, positions, heads, kv_heads, head_dim, tables,
                layer, scale, attention_softcap, zeros)  # fmt: skip
        _linear_and_add(region + 4 * REGION, a, m, q_width, layer[OUT : OUT + 3], hidden,
                        layer[POST_ATTENTION], eps, variant, residual, x, h, zeros)  # fmt: skip
        source = _norm(region + 6 * REGION, h, m, hidden, layer[PRE_MLP], eps, variant, x)
        _gated(region + 7 * REGION, source, m, hidden, layer, n_inner, gelu, inner, zeros)
        _linear_and_add(region + 8 * REGION, inner, m, n_inner, layer[DOWN : DOWN + 3], hidden,
                        layer[POST_MLP], eps, variant, residual, x, h, zeros)  # fmt: skip
        region += LAYER_REGIONS * REGION

    _final_norm(region, h, logit_rows, hidden, final_norm, eps, variant, x)
    output, one = np.array([head, head_bf16, 0]), np.float32(1)
    if count:
        _linear(region + REGION, x, count, hidden, output, vocab, np.bool_(False), one, logits,
                zeros)  # fmt: skip
    if logits_divisor != one or logits_factor != one or final_softcap > np.float32(0):
        _finish(region + 2 * REGION, count, logits, vocab, logits_divisor, logits_factor,
                final_softcap)  # fmt: skip


@parallel_kernel
def step(threads, ids, positions, sequences, tables, items, logit_rows, layers, dims, factors,
         h, x, q, k, v, a, inner, zeros, logits):  # fmt: skip
    """Logits of ``logit_rows`` after running every layer over a batch.

    Args:
        threads: size of the team.
        ids, positions, sequences: token id, position and sequence of each flat row. [T]
        tables: page ids. [R, max pages]
        items: from ``attention.work_items``.
        layers: the table of COLUMNS. [layers, 32] int64
        dims, factors: DIMS (int64) and FACTORS (binary32).
        h, x, q, k, v, a, inner: scratch of T rows of the layer's widths.
        logits: out. [L, vocab]
    """
    team = regions(layers.shape[0] * LAYER_REGIONS + OTHER_REGIONS)
    h0, x0, q0, k0, v0 = h.ctypes.data, x.ctypes.data, q.ctypes.data, k.ctypes.data, v.ctypes.data
    a0, i0, zero, out0 = a.ctypes.data, inner.ctypes.data, zeros.ctypes.data, logits.ctypes.data
    for _thread in prange(threads):
        before = enter()
        _run(team, ids, positions, sequences, tables, items, logit_rows, layers, dims, factors,
             h0, x0, q0, k0, v0, a0, i0, zero, out0)  # fmt: skip
        leave(before)
