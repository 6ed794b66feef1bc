"""One forward step of the Llama pattern in one compiled call (docs/arithmetic.md).

Swapped modules leave Python and small tensor calls between the kernels: half of a token's time at
batch 1. Here the layer loop itself is compiled and runs over a table of addresses of the very
weights those modules hold. Each operation rounds where the modules' own code rounds.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from detinfer.kernels.cpu.attention import attend
from detinfer.kernels.cpu.fused.items import (
    add_rows,
    finish_logits,
    gated_item,
    linear_item,
    prepare_token,
)
from detinfer.kernels.cpu.fused.table import (
    BFLOAT16,
    DOWN,
    GATE,
    INPUT_NORM,
    K_CACHE,
    OUT,
    POST_ATTENTION,
    POST_MLP,
    PRE_MLP,
    SIZE,
    TILE,
    UP,
    V_CACHE,
    WINDOW,
    K,
    Q,
    V,
)
from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.matmul import PANEL, embedding_row, row_blocks
from detinfer.kernels.cpu.norms import rms_norm_row
from detinfer.kernels.cpu.packed.embedding import call_row
from detinfer.kernels.cpu.packed.rows import quantise_row
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.team import REGION, done_take, end_of, regions, step_of, take, wait
from detinfer.kernels.cpu.vector import f32_at

LAYER_REGIONS, OTHER_REGIONS = 11, 4  # what _run numbers off


@kernel
def _panels(n, m):
    return (n + PANEL - 1) // PANEL * row_blocks(m)


@kernel
def _embed(region, ids, n, w, row_code, size, factor, out):
    t = take(region, ids.size)
    while t < ids.size:
        if row_code > BFLOAT16:
            call_row(row_code, ids[t], n, w, size, out + t * n * 4)
        else:
            embedding_row(ids[t], n, w, row_code, out + t * n * 4)
        if factor != np.float32(1):
            row = f32_at(out + t * n * 4, n)
            for i in range(n):
                row[i] = row[i] * factor
        t = done_take(region, ids.size)
    wait(region, ids.size)


@kernel
def _norm(region, x, rows, n, w, eps, variant, out, quantised):
    """Norm every row, or nothing without a weight, and return where the result is.

    It is quantised too, where there is a place for it.
    """
    if w == 0 and quantised == 0:
        return x
    result = out if w else x
    row = take(region, rows)
    while row < rows:
        at = row * n * 4
        if w:
            rms_norm_row(x + at, n, w, eps, variant, result + at)
        if quantised:
            quantise_row(result + at, row, rows, n, quantised)
        row = done_take(region, rows)
    wait(region, rows)
    return result


@kernel
def _norm_and_add(region, h, x, rows, n, w, eps, variant, factor):
    """Add norm(x) * factor to h, row by row; x is overwritten."""
    row = take(region, rows)
    while row < rows:
        at = x + row * n * 4
        rms_norm_row(at, n, w, eps, variant, at)
        add_rows(h + row * n * 4, at, n, factor)
        row = done_take(region, rows)
    wait(region, rows)


@kernel
def _linear(region, x, quantised, m, k, linear, n, add, factor, out, zeros):
    count = _panels(n, m)
    item = take(region, count)
    while item < count:
        linear_item(item, step_of(region), x, quantised, m, k, linear, n, add, factor, out, zeros)
        item = done_take(region, count)
    wait(region, count)


@kernel
def _linear_and_add(region, x, quantised, m, k, linear, n, norm, eps, variant, factor, scratch, h,
                    zeros):  # fmt: skip
    """Add linear(x) * factor to h, through the norm after it if the layer has one."""
    direct = norm == 0
    out = h if direct else scratch
    _linear(region, x, quantised, m, k, linear, n, direct, factor, out, zeros)
    if not direct:
        _norm_and_add(region + REGION, h, scratch, m, n, norm, eps, variant, factor)


@kernel
def _queries_keys_values(region, x, quantised, m, k, layer, q_width, kv_width, q, keys, values,
                         zeros):  # fmt: skip
    q_items, kv_items = _panels(q_width, m), _panels(kv_width, m)
    one, add = np.float32(1), np.bool_(False)
    count = q_items + 2 * kv_items
    item = take(region, count)
    while item < count:
        at, linear, width, out = item, layer[Q : Q + SIZE], q_width, q
        if item >= q_items + kv_items:
            at, linear, width, out = at - q_items - kv_items, layer[V : V + SIZE], kv_width, values
        elif item >= q_items:
            at, linear, width, out = at - q_items, layer[K : K + SIZE], kv_width, keys
        linear_item(at, step_of(region), x, quantised, m, k, linear, width, add, one, out, zeros)
        item = done_take(region, count)
    wait(region, count)


@kernel
def _gated(region, x, quantised, m, k, layer, n, gelu, out, out_quantised, zeros):
    count = _panels(n, m)
    gate, up = layer[GATE : GATE + SIZE], layer[UP : UP + SIZE]
    item = take(region, count)
    while item < count:
        gated_item(item, step_of(region), x, quantised, m, k, gate, up, n, gelu, out, out_quantised,
                   zeros)  # fmt: skip
        item = done_take(region, count)
    wait(region, count)


@kernel
def _prepare(region, m, q, k, v, layer, heads, kv_heads, head_dim, rotary, eps, variant, wide,
             positions, sequences, tables, cache_size):  # fmt: skip
    t = take(region, m)
    while t < m:
        prepare_token(t, q, k, v, layer, heads, kv_heads, head_dim, rotary, eps, variant, wide,
                       positions[t], tables[sequences[t]], cache_size)  # fmt: skip
        t = done_take(region, m)
    wait(region, m)


@kernel
def _quantise(region, x, rows, n, quantised):
    row = take(region, rows)
    while row < rows:
        quantise_row(x + row * n * 4, row, rows, n, quantised)
        row = done_take(region, rows)
    wait(region, rows)


@kernel
def _final_norm(region, h, rows, count, n, w, eps, variant, out, quantised):
    """Norm the rows that are wanted, closed up.

    The first ``count``, which need logits, are quantised too where there is a place for it.
    """
    i = take(region, rows.size)
    while i < rows.size:
        rms_norm_row(h + rows[i] * n * 4, n, w, eps, variant, out + i * n * 4)
        if quantised and i < count:
            quantise_row(out + i * n * 4, i, count, n, quantised)
        i = done_take(region, rows.size)
    wait(region, rows.size)


@kernel
def _finish(region, rows, out, vocab, divisor, factor, softcap):
    row = take(region, rows)
    while row < rows:
        finish_logits(out + row * vocab * 4, vocab, divisor, factor, softcap)
        row = done_take(region, rows)
    wait(region, rows)


@kernel
def _run(first, ids, positions, sequences, tables, items, partials, rows, count, layers, dims,
         factors, h, x, q, k, v, a, inner, x_q, inner_q, zeros, logits):  # fmt: skip
    """Return what every thread of the team runs; ``first`` is its first region."""
    (hidden, heads, kv_heads, head_dim, rotary, n_inner, vocab, variant, wide, gelu, embedding,
     embedding_row, embedding_panel, final_norm, head, head_tile, head_panel,
     cache_size) = dims  # fmt: skip
    (eps, scale, attention_softcap, embedding_factor, residual, logits_divisor, logits_factor,
     final_softcap) = factors  # fmt: skip
    m = ids.size
    q_width, kv_width = heads * head_dim, kv_heads * head_dim

    _embed(first, ids, hidden, embedding, embedding_row, embedding_panel, embedding_factor, h)
    region = first + REGION
    for index in range(layers.shape[0]):
        layer = layers[index]
        packed = max(layer[Q + TILE], layer[K + TILE], layer[V + TILE]) > BFLOAT16
        source = _norm(region, h, m, hidden, layer[INPUT_NORM], eps, variant, x,
                       x_q if packed else 0)  # fmt: skip
        _queries_keys_values(region + REGION, source, x_q, m, hidden, layer, q_width, kv_width, q,
                             k, v, zeros)  # fmt: skip
        _prepare(region + 2 * REGION, m, q, k, v, layer, heads, kv_heads, head_dim, rotary, eps,
                 variant, wide, positions, sequences, tables, cache_size)  # fmt: skip
        attend(region + 3 * REGION, items, partials, q, a, positions, heads, kv_heads, head_dim,
               head_dim, tables, layer[K_CACHE], layer[V_CACHE], cache_size, scale,
               layer[WINDOW], attention_softcap, np.int64(0), zeros)  # fmt: skip
        if layer[OUT + TILE] > BFLOAT16:
            _quantise(region + 4 * REGION, a, m, q_width, x_q)
        _linear_and_add(region + 5 * REGION, a, x_q, m, q_width, layer[OUT : OUT + SIZE], hidden,
                        layer[POST_ATTENTION], eps, variant, residual, x, h, zeros)  # fmt: skip
        packed = max(layer[GATE + TILE], layer[UP + TILE]) > BFLOAT16
        source = _norm(region + 7 * REGION, h, m, hidden, layer[PRE_MLP], eps, variant, x,
                       x_q if packed else 0)  # fmt: skip
        _gated(region + 8 * REGION, source, x_q, m, hidden, layer, n_inner, gelu, inner,
               inner_q if layer[DOWN + TILE] > BFLOAT16 else 0, zeros)  # fmt: skip
        _linear_and_add(region + 9 * REGION, inner, inner_q, m, n_inner, layer[DOWN : DOWN + SIZE],
                        hidden, layer[POST_MLP], eps, variant, residual, x, h, zeros)  # fmt: skip
        region += LAYER_REGIONS * REGION

    _final_norm(region, h, rows, count, hidden, final_norm, eps, variant, x,
                x_q if head_tile > BFLOAT16 else 0)  # fmt: skip
    output, one = np.array([head, head_tile, head_panel, 0]), np.float32(1)
    if count:
        _linear(region + REGION, x, x_q, count, hidden, output, vocab, np.bool_(False), one,
                logits, zeros)  # fmt: skip
    if logits_divisor != one or logits_factor != one or final_softcap > np.float32(0):
        _finish(region + 2 * REGION, count, logits, vocab, logits_divisor, logits_factor,
                final_softcap)  # fmt: skip


@parallel_kernel
def step(threads, ids, positions, sequences, tables, items, partials, rows, layers, dims,
         factors, h, x, q, k, v, a, inner, x_q, inner_q, zeros, logits):  # fmt: skip
    """Run every layer over a batch, then the last norm over ``rows`` and the head over the first.

    Args:
        threads: size of the team.
        ids, positions, sequences: token id, position and sequence of each flat row. [T]
        tables: page ids. [R, max pages]
        items, partials: as ``attend`` has them.
        rows: flat rows that are wanted: L for their logits, then others, for ``x`` alone. [N]
        layers: a row of table.COLUMNS each. [layers, columns] int64
        dims, factors: table.DIMS (int64) and FACTORS (binary32).
        h, x, q, k, v, a, inner: scratch of T rows of the layer's widths.
        x_q, inner_q: scratch of T quantised rows, of x or a and of inner.
        logits: out. [L, vocab]

    ``x`` is left with the final hidden states of ``rows``, closed up.
    """
    team = regions(layers.shape[0] * LAYER_REGIONS + OTHER_REGIONS)
    h0, x0, q0, k0, v0 = h.ctypes.data, x.ctypes.data, q.ctypes.data, k.ctypes.data, v.ctypes.data
    a0, i0, zero, out0 = a.ctypes.data, inner.ctypes.data, zeros.ctypes.data, logits.ctypes.data
    xq0, iq0, count = x_q.ctypes.data, inner_q.ctypes.data, logits.shape[0]
    for thread in prange(threads):
        before = enter()
        first = team.ctypes.data + end_of(thread, threads)
        _run(first, ids, positions, sequences, tables, items, partials, rows, count, layers, dims,
             factors, h0, x0, q0, k0, v0, a0, i0, xq0, iq0, zero, out0)  # fmt: skip
        leave(before)
