"""Paged attention: prompt, chunk and decoded token in one kernel (docs/arithmetic.md, rule 3).

A page holds 64 positions of every head: keys as [kv_heads, k_dim, 64], values as
[kv_heads, 64, v_dim padded to 16]. So q·K is the linear layer's own tile with a page as its panel,
and P·V the same tile resumed from the running output. Rows of a tile are (query position, head of
the group).
"""

from __future__ import annotations

import numpy as np
from numba import prange

from detinfer.kernels.cpu.attention_scores import scale_and_max, weights
from detinfer.kernels.cpu.elementary import exp32
from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.microkernel import tile_f32, tile_narrow
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.team import REGION, done_take, end_of, regions, take, wait
from detinfer.kernels.cpu.vector import LANES, WIDE, div, f32_at, fma

PAGE = 64
SEGMENT_PAGES = 8
TILE_ROWS = 24


@kernel
def padded(v_dim):
    """Values are stored in whole vectors."""
    return (v_dim + LANES - 1) // LANES * LANES


@kernel
def work_items(query_start, positions, kv_heads, group):
    """Work items (sequence, first flat row, row count, kv head), dearest first.

    Costs are estimated from the visible keys; the order of items cannot change a bit.
    """
    step = max(1, TILE_ROWS // group)
    sequences = query_start.size - 1
    count = 0
    for r in range(sequences):
        count += (query_start[r + 1] - query_start[r] + step - 1) // step
    tiles = np.empty((count, 4), np.int64)  # sequence, first row, rows, cost
    used = 0
    for r in range(sequences):
        for first in range(query_start[r], query_start[r + 1], step):
            rows = min(step, query_start[r + 1] - first)
            cost = rows * (positions[first] + rows)
            at = used
            while at > 0 and tiles[at - 1, 3] < cost:
                tiles[at] = tiles[at - 1]
                at -= 1
            tiles[at, 0], tiles[at, 1], tiles[at, 2], tiles[at, 3] = r, first, rows, cost
            used += 1
    items = np.empty((count * kv_heads, 4), np.int64)
    for i in range(count * kv_heads):
        tile = tiles[i // kv_heads]
        items[i, 0], items[i, 1], items[i, 2] = tile[0], tile[1], tile[2]
        items[i, 3] = i % kv_heads
    return items


@kernel
def write_cache(k, v, position, table, kv_heads, k_dim, v_dim, k_cache, v_cache):
    """One token's keys and values into its page; addresses, rows [kv_heads * dim]."""
    v_pad = padded(v_dim)
    page, slot = np.int64(table[position // PAGE]), position % PAGE
    for head in range(kv_heads):
        keys = f32_at(k_cache + (page * kv_heads + head) * k_dim * PAGE * 4, k_dim * PAGE)
        source = f32_at(k + head * k_dim * 4, k_dim)
        for d in range(k_dim):
            keys[d * PAGE + slot] = source[d]
        start = ((page * kv_heads + head) * PAGE + slot) * v_pad
        values, source = f32_at(v_cache + start * 4, v_pad), f32_at(v + head * v_dim * 4, v_dim)
        for d in range(v_dim):
            values[d] = source[d]


@kernel
def _multiply_values(m, p, v, v_pad, low, high, o):
    """o[m, v_pad] resumes its chains over p[m, low:high] and the page's values."""
    p += low * 4
    for column in range(0, v_pad, WIDE):
        if v_pad - column >= WIDE:
            at, target = v + (low * v_pad + column) * 4, o + column * 4
            tile_f32(m, p, PAGE, at, v_pad, target, v_pad, target, v_pad, high - low)
        else:
            for narrow in range(column, v_pad, LANES):
                at, target = v + (low * v_pad + narrow) * 4, o + narrow * 4
                tile_narrow(m, p, PAGE, at, v_pad, target, v_pad, target, v_pad, high - low)


@kernel
def attend(q, out, rows, position, head, heads, kv_heads, k_dim, v_dim, table, k_cache, v_cache,
           scale, window, softcap, sinks, zeros):  # fmt: skip
    """``rows`` successive queries of one sequence and one kv head.

    Args:
        q, out: addresses of flat row 0 of this tile. [rows, heads, k_dim], [rows, heads, v_dim]
        position: absolute position of the first query.
        table: the sequence's page ids.
        window: 0 for none.  softcap: 0 for none.  sinks: address of [heads] values, or 0.
    """
    group = heads // kv_heads
    m_rows = rows * group
    v_pad = padded(v_dim)
    queries = np.empty((m_rows, k_dim), np.float32)
    for row in range(m_rows):
        at = ((row // group) * heads + head * group + row % group) * k_dim
        queries[row] = f32_at(q + at * 4, k_dim)
    scores = np.empty((m_rows, PAGE), np.float32)
    seg_m, seg_l = np.empty(m_rows, np.float32), np.empty(m_rows, np.float32)
    all_m, all_l = np.empty(m_rows, np.float32), np.empty(m_rows, np.float32)
    seg_o, all_o = np.empty((m_rows, v_pad), np.float32), np.empty((m_rows, v_pad), np.float32)
    started, merged = np.zeros(m_rows, np.bool_), np.zeros(m_rows, np.bool_)
    if sinks:
        sink = f32_at(sinks, heads)
        for row in range(m_rows):
            all_m[row] = sink[head * group + row % group]
        all_l[:] = np.float32(1)
        all_o[:] = np.float32(0)
        merged[:] = True
    first_key = max(0, position - window + 1) if window else 0
    last_page = (position + rows - 1) // PAGE
    page_at = first_key // PAGE
    while page_at <= last_page:
        segment_end = min(last_page + 1, (page_at // SEGMENT_PAGES + 1) * SEGMENT_PAGES)
        started[:] = False
        for block in range(page_at, segment_end):
            page = np.int64(table[block]) * kv_heads + head
            keys, values = k_cache + page * k_dim * PAGE * 4, v_cache + page * PAGE * v_pad * 4
            _attend_block(
                queries, keys, values, scores, seg_m, seg_l, seg_o, started, group, k_dim, v_pad,
                position - block * PAGE, window, scale, softcap, zeros,
            )  # fmt: skip
        _merge_segment(seg_m, seg_l, seg_o, started, all_m, all_l, all_o, merged)
        page_at = segment_end
    for row in range(m_rows):
        at = ((row // group) * heads + head * group + row % group) * v_dim
        target = f32_at(out + at * 4, v_dim)
        for d in range(v_dim):
            target[d] = div(all_o[row, d], all_l[row])


@kernel
def _attend_block(queries, keys, values, scores, seg_m, seg_l, seg_o, started, group, k_dim, v_pad,
                  position, window, scale, softcap, zeros):  # fmt: skip
    """One block of 64 keys; ``position`` is the first query's, counted from the block's start."""
    m_rows = queries.shape[0]
    tile_f32(m_rows, queries.ctypes.data, k_dim, keys, PAGE, zeros, 0,
             scores.ctypes.data, PAGE, k_dim)  # fmt: skip
    run, run_low, run_high = 0, 0, 0  # rows [run, row) see the same keys and multiply together
    for row in range(m_rows):
        here = position + row // group
        high = min(PAGE, here + 1)
        low = max(0, here - window + 1) if window else 0
        if low != run_low or high != run_high:
            if run_low < run_high:
                _multiply_values(row - run, scores[run].ctypes.data, values, v_pad,
                                 run_low, run_high, seg_o[run].ctypes.data)  # fmt: skip
            run, run_low, run_high = row, low, high
        if low >= high:
            continue
        s = scores[row].ctypes.data
        best = scale_and_max(s, low, high, scale, softcap)
        if started[row]:
            best = max(best, seg_m[row])
            alpha = exp32(seg_m[row] - best)
            seg_l[row] = fma(seg_l[row], alpha, weights(s, low, high, best))
            o = seg_o[row]
            for d in range(v_pad):
                o[d] = o[d] * alpha
        else:
            started[row] = True
            seg_l[row] = weights(s, low, high, best)
            seg_o[row] = np.float32(0)
        seg_m[row] = best
    if run_low < run_high:
        _multiply_values(m_rows - run, scores[run].ctypes.data, values, v_pad,
                         run_low, run_high, seg_o[run].ctypes.data)  # fmt: skip


@kernel
def _merge_segment(seg_m, seg_l, seg_o, started, all_m, all_l, all_o, merged):
    for row in range(seg_m.size):
        if not started[row]:
            continue
        if not merged[row]:
            merged[row] = True
            all_m[row], all_l[row] = seg_m[row], seg_l[row]
            all_o[row] = seg_o[row]
            continue
        m = max(all_m[row], seg_m[row])
        a1, a2 = exp32(all_m[row] - m), exp32(seg_m[row] - m)
        all_m[row], all_l[row] = m, fma(seg_l[row], a2, all_l[row] * a1)
        total, part = all_o[row], seg_o[row]
        for d in range(total.size):
            total[d] = fma(part[d], a2, total[d] * a1)


@parallel_kernel
def attention(threads, q, k, v, query_start, positions, tables, items, k_cache, v_cache, kv_heads,
              scale, window, softcap, sinks, zeros, out):  # fmt: skip
    """Write ``k`` and ``v`` [T, kv_heads, dim] to their pages, then attend causally.

    Args:
        threads: size of the team.
        q: [T, heads, k_dim].  out: [T, heads, v_dim].  All contiguous binary32.
        items: from ``work_items``.
        k_cache: this layer's pages. [pages, kv_heads, k_dim, 64]
        v_cache: likewise. [pages, kv_heads, 64, v_pad]
        sinks: address of [heads] values, or 0.  zeros: 64 zeros.
    """
    tokens, heads, k_dim = q.shape
    v_dim = out.shape[2]
    q0, k0, v0, out0 = q.ctypes.data, k.ctypes.data, v.ctypes.data, out.ctypes.data
    kc, vc = np.int64(k_cache.ctypes.data), np.int64(v_cache.ctypes.data)
    zero = zeros.ctypes.data
    sequence = np.empty(tokens, np.int64)
    for r in range(query_start.size - 1):
        sequence[query_start[r] : query_start[r + 1]] = r
    team = regions(2)
    for thread in prange(threads):
        before = enter()
        writing = team.ctypes.data + end_of(thread, threads)
        attending = writing + REGION
        t = take(writing, tokens)
        while t < tokens:
            write_cache(k0 + t * kv_heads * k_dim * 4, v0 + t * kv_heads * v_dim * 4,
                        positions[t], tables[sequence[t]], kv_heads, k_dim, v_dim, kc,
                        vc)  # fmt: skip
            t = done_take(writing, tokens)
        wait(writing, tokens)
        i = take(attending, items.shape[0])
        while i < items.shape[0]:
            r, first, rows, head = items[i, 0], items[i, 1], items[i, 2], items[i, 3]
            attend(q0 + first * heads * k_dim * 4, out0 + first * heads * v_dim * 4, rows,
                    positions[first], head, heads, kv_heads, k_dim, v_dim, tables[r], kc, vc,
                    scale, window, softcap, sinks, zero)  # fmt: skip
            i = done_take(attending, items.shape[0])
        wait(attending, items.shape[0])
        leave(before)
