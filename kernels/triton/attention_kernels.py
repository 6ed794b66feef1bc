"""The kernels of paged attention (docs/arithmetic.md, N3; launched by attention.py).

A tile's rows are (position, head of the group), so that a group's heads share each load and a
decoded row is the row it would be in a prompt. Every path folds 64 keys by ``_visit`` and 512 by
``_merge``, so how a batch is cut into items (attention_work.py) and tiles is free. Lists are walked
by a fixed grid that reads their lengths from memory, as a captured graph needs.

Keys and values are loaded by pointers on every architecture: a TMA box cannot end inside a page.
"""

# ruff: noqa: E741  (m, l and o are the literature's names)
from __future__ import annotations

import math

import triton
import triton.language as tl

from detinfer.kernels.triton import attention_work
from detinfer.kernels.triton.overlap import take_turn

BLOCK = tl.constexpr(attention_work.BLOCK)
SEGMENT = tl.constexpr(attention_work.SEGMENT_BLOCKS)
ITEM = tl.constexpr(attention_work.ITEM)
MERGE = tl.constexpr(attention_work.MERGE)
LOG2E = tl.constexpr(math.log2(math.e))  # binary32 where it meets one
MERGE_STAGES = tl.constexpr(4)


@triton.jit
def _block_sum(p):
    """Sum of a block's 64 weights: column bits 5, 4, 3, then 0, then 2, 1. [R, 64] -> [R]."""
    rows: tl.constexpr = p.shape[0]
    p = tl.sum(tl.reshape(p, (rows, 2, 32)), 1)
    p = tl.sum(tl.reshape(p, (rows, 2, 16)), 1)
    p = tl.sum(tl.reshape(p, (rows, 2, 8)), 1)
    p = tl.sum(tl.reshape(p, (rows, 4, 2)), 2)
    p = tl.sum(tl.reshape(p, (rows, 2, 2)), 1)
    return tl.sum(tl.reshape(p, (rows, 2)), 1)


@triton.jit
def _finite_or_zero(m):
    """Return what is subtracted from scores: their maximum, or 0 while there is none."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def _visit(q, k, v, m, l, o, last, window, edge, sigma, kappa, SOFTCAP: tl.constexpr):
    """One block of 64 keys folded into a segment's (m, l, o).

    A row sees ``window`` keys up to ``last``: every key of a block without an ``edge``.
    """
    c = tl.zeros((q.shape[0], BLOCK), tl.float32)
    c = tl.dot(q, tl.trans(k), c, input_precision="ieee")
    if SOFTCAP:
        t = tl.exp2(c * sigma)
        s = kappa - tl.math.div_rn(2.0 * kappa, 1.0 + t)
    else:
        s = c * sigma
    if edge:
        # Unsigned: a later key's age is negative, so beyond any window.
        age = (last[:, None] - tl.arange(0, BLOCK)[None, :]).to(tl.uint32, bitcast=True)
        s = tl.where(age < window, s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1))
    base = _finite_or_zero(top)
    alpha = tl.exp2(m - base)
    p = tl.exp2(s - base[:, None])
    l = tl.fma(l, alpha, _block_sum(p))
    o = tl.dot(p.to(v.dtype), v, o * alpha[:, None], input_precision="ieee")
    return top, l, o


@triton.jit
def _merge(m1, l1, o1, m2, l2, o2):
    """Return a later segment (m2, l2, o2) merged into the total (m1, l1, o1)."""
    m = tl.maximum(m1, m2)
    base = _finite_or_zero(m)
    a1, a2 = tl.exp2(m1 - base), tl.exp2(m2 - base)
    return m, tl.fma(l2, a2, l1 * a1), tl.fma(o2, a2[:, None], o1 * a1[:, None])


@triton.jit
def _nothing(ROWS: tl.constexpr, DIM: tl.constexpr):
    """(m, l, o) before any key."""
    m = tl.full((ROWS,), float("-inf"), tl.float32)
    return m, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, DIM), tl.float32)


@triton.jit
def _before_all(sinks, heads, exists, ROWS: tl.constexpr, DIM: tl.constexpr, SINKS: tl.constexpr):
    """Return the total that segments are merged into: nothing, or each row's sink."""
    m, l, o = _nothing(ROWS, DIM)
    if SINKS:
        m = tl.load(sinks + heads, exists, 0.0).to(tl.float32) * LOG2E
        l = l + 1.0
    return m, l, o


@triton.jit
def _quotient(l, o):
    """Return the result of a total: o / l, and +0 for -0."""
    return tl.math.div_rn(o, tl.broadcast_to(l[:, None], o.shape)) + 0.0


@triton.jit
def _rows_of(item, kv_head, group, group_bits, BLOCK_M: tl.constexpr):
    """Return a tile's rows: flat row, number of its position, head, whether there is one."""
    # Asked before the keys are walked and again after: the reads are volatile, and `zero` is a
    # number that only the device knows, so that nothing of this is kept in registers meanwhile, nor
    # made once before all items. There is no register to spare.
    zero = tl.load(item + 7, volatile=True)
    r = tl.arange(0, BLOCK_M) + zero
    i, g = r >> group_bits, r & ((1 << group_bits) - 1)
    exists = (i < tl.load(item + 2, volatile=True)) & (g < group)
    return tl.load(item + 1, volatile=True).to(tl.int64) + i, i, kv_head * group + g, exists


# Whether these divide by 16 changes nothing, so it must not make another compilation.
PLAIN = ("table_stride", "kv_heads", "group", "group_bits", "window", "items_at", "count_at")
UNALIGNED = ("tables", "work", "sinks")


@triton.jit(do_not_specialize=PLAIN, do_not_specialize_on_alignment=UNALIGNED)
def attend_kernel(
    q, k_cache, v_cache, tables, work, sinks, out, parts_o, parts_ml, q_row_stride, q_head_stride,
    table_stride, kv_heads, group, group_bits, window, sigma, kappa, items_at, count_at,
    K_DIM: tl.constexpr, V_DIM: tl.constexpr, K_PAD: tl.constexpr, V_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr, WHOLE: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Items x KV heads: each an output tile, or the partial result of one of its segments."""
    take_turn(OVERLAP)
    key = tl.arange(0, BLOCK)[:, None]
    dk = tl.arange(0, K_PAD)[None, :]
    dv = tl.arange(0, V_PAD)[None, :]
    count = tl.load(work + count_at) * kv_heads
    for at in tl.range(tl.program_id(0), count, tl.num_programs(0), num_stages=1):
        kv_head = at % kv_heads
        item = work + items_at + (at // kv_heads) * ITEM
        sequence = tl.load(item).to(tl.int64)
        rows = tl.load(item + 2)
        position = tl.load(item + 3)
        first_block = tl.load(item + 4)
        end_block = tl.load(item + 5)
        row, i, head, exists = _rows_of(item, kv_head, group, group_bits, BLOCK_M)
        q_at = row * q_row_stride + head * q_head_stride
        q_tile = tl.load(q + q_at[:, None] + dk, exists[:, None] & (dk < K_DIM), 0.0)
        length = position + rows  # no row of the tile sees a later key

        m_all, l_all, o_all = _before_all(sinks, head, exists, BLOCK_M, V_PAD, SINKS)
        m, l, o = _nothing(BLOCK_M, V_PAD)
        table = tables + sequence * table_stride
        page = tl.load(table + first_block)
        for block in tl.range(first_block, end_block):
            # The next page's id now: a load through one of its own iteration would not be
            # started ahead.
            next_page = tl.load(table + tl.minimum(block + 1, end_block - 1))
            base = (page.to(tl.int64) * kv_heads + kv_head) * BLOCK
            start = block * BLOCK
            # Keys that do not exist are zeros: a stale value may be an infinity, and 0 * Inf a NaN.
            k_tile = tl.load(k_cache + base * K_DIM + (key * K_DIM + dk), dk < K_DIM, 0.0)
            v_mask = (key < length - start) & (dv < V_DIM)
            v_tile = tl.load(v_cache + base * V_DIM + (key * V_DIM + dv), v_mask, 0.0)
            last = position + i - start
            edge = (start + BLOCK > position + 1) | (length > start + window)
            m, l, o = _visit(
                q_tile, k_tile, v_tile, m, l, o, last, window, edge, sigma, kappa, SOFTCAP
            )
            if WHOLE:
                stop = block + 1
                ends = (stop // SEGMENT * SEGMENT == stop) | (stop == end_block)
                if ends:
                    m_all, l_all, o_all = _merge(m_all, l_all, o_all, m, l, o)
                    m, l, o = _nothing(BLOCK_M, V_PAD)
            page = next_page

        row, i, head, exists = _rows_of(item, kv_head, group, group_bits, BLOCK_M)
        out_at = (row * kv_heads * group + head)[:, None] * V_DIM + dv
        mask = exists[:, None] & (dv < V_DIM)
        if WHOLE:
            tl.store(out + out_at, _quotient(l_all, o_all).to(out.dtype.element_ty), mask)
        else:
            slot = tl.load(item + 6).to(tl.int64)
            if slot < 0:
                m_all, l_all, o_all = _merge(m_all, l_all, o_all, m, l, o)
                tl.store(out + out_at, _quotient(l_all, o_all).to(out.dtype.element_ty), mask)
            else:
                part = (slot + i) * kv_heads * group + head
                tl.store(parts_ml + part * 2, m, exists)
                tl.store(parts_ml + part * 2 + 1, l, exists)
                tl.store(parts_o + part[:, None] * V_DIM + dv, o, mask)


@triton.jit(do_not_specialize=("heads", "merges_at"), do_not_specialize_on_alignment=UNALIGNED[1:])
def merge_kernel(
    work, sinks, out, parts_o, parts_ml, heads, merges_at,
    V_DIM: tl.constexpr, V_PAD: tl.constexpr, HEADS: tl.constexpr, SINKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Query rows x heads: a row's partial results, added in ascending order of segments."""
    take_turn(OVERLAP)
    dv = tl.arange(0, V_PAD)[None, :]
    tiles = tl.cdiv(heads, HEADS)
    count = tl.load(work + 2) * tiles
    for at in tl.range(tl.program_id(0), count, tl.num_programs(0), num_stages=1):
        head = (at % tiles) * HEADS + tl.arange(0, HEADS)
        exists = head < heads
        mask = exists[:, None] & (dv < V_DIM)
        merge = work + merges_at + (at // tiles) * MERGE
        row = tl.load(merge).to(tl.int64)
        slot = tl.load(merge + 1).to(tl.int64)
        step = tl.load(merge + 2)
        segments = tl.load(merge + 3)
        m, l, o = _before_all(sinks, head, exists, HEADS, V_PAD, SINKS)
        for segment in tl.range(segments, num_stages=MERGE_STAGES):
            part = (slot + segment * step) * heads + head
            m2 = tl.load(parts_ml + part * 2, exists, 0.0)
            l2 = tl.load(parts_ml + part * 2 + 1, exists, 1.0)
            o2 = tl.load(parts_o + part[:, None] * V_DIM + dv, mask, 0.0)
            m, l, o = _merge(m, l, o, m2, l2, o2)
        out_at = (row * heads + head)[:, None] * V_DIM + dv
        tl.store(out + out_at, _quotient(l, o).to(out.dtype.element_ty), mask)
