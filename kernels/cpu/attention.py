"""Paged attention: prompt, chunk and decoded token in one kernel (docs/arithmetic.md, rule 3).

Threads are dealt tiles: some queries of a sequence, whose rows are (query position, head of the
group), and one kv head. Six rows at a time go through a page (pages.py).
"""

from __future__ import annotations

import numpy as np
from numba import prange

from detinfer.kernels.cpu.attention_scores import cap_scores, weigh
from detinfer.kernels.cpu.attention_state import (
    clear,
    copy_row,
    divide_row,
    merge_row,
    sink,
    state_floats,
)
from detinfer.kernels.cpu.attention_tiles import multiply_keys, multiply_values
from detinfer.kernels.cpu.attention_work import (
    DONE,
    FIRST,
    HEAD,
    PARTS,
    ROWS,
    SEGMENT_PAGES,
    SEQUENCE,
    SLOT,
    START,
    STOP,
)
from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.microkernel import TILE_ROWS
from detinfer.kernels.cpu.pages import PAGE, padded, write_cache
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.team import REGION, done_take, end_of, regions, take, wait
from detinfer.kernels.cpu.vector import f32_at

LINE = 64  # bytes


@kernel
def _seen(position, window):
    """Return which keys of a block a query sees; its position counts from the block's start."""
    return max(0, position - window + 1) if window else 0, min(PAGE, position + 1)


@kernel
def _live(position, rows, window, start, stop):
    """Return which of ``rows`` queries from ``position`` on see one of the keys [start, stop)."""
    last = min(rows, stop + window - 1 - position) if window else rows
    return max(0, start - position), last


@kernel
def _block(queries, shape, position, rule, keys, values, scores, state, zeros, ahead):
    """One block of 64 keys; ``position`` is the first query's, counted from the block's start."""
    rows, group, k_dim, v_pad, size = shape
    window, scale, softcap = rule
    first, last = _live(position, rows, window, 0, PAGE)
    same = _seen(position + first, window) == _seen(position + last - 1, window)
    run = (last - first) * group if same else group
    m, column, factors = state, rows * group * 4, scores - LINE
    for start in range(first * group, last * group, run):
        low, high = _seen(position + start // group, window)
        for row in range(start, start + run, TILE_ROWS):
            count = min(TILE_ROWS, start + run - row)
            multiply_keys(count, queries + row * k_dim * 4, keys, size, k_dim, high, scores, zeros,
                           values)  # fmt: skip
            factor = scale
            if softcap > np.float32(0):
                cap_scores(count, scores, scale, softcap)
                factor = np.float32(1)
            at = m + row * 4
            weigh(count, scores, at, at + column, factors, factor, low, high)
            following = ahead if row + count == last * group else values
            multiply_values(count, scores, values, size, v_pad, low, high, factors,
                             m + 2 * column + row * v_pad * 4, following)  # fmt: skip


@kernel
def attend_segment(queries, shape, position, rule, pages, start, stop, scores, state, zeros):
    """Pages [start, stop) of one segment: ``state`` becomes m, l and o of the rows."""
    rows, group, k_dim, v_pad, size = shape
    table, head, kv_heads, k_cache, v_cache = pages
    clear(state, rows * group, v_pad)
    page = np.int64(table[start]) * kv_heads + head
    for block in range(start, stop):
        following = np.int64(table[min(block + 1, stop - 1)]) * kv_heads + head
        _block(queries, shape, position - block * PAGE, rule, k_cache + page * k_dim * PAGE * size,
               v_cache + page * PAGE * v_pad * size, scores, state, zeros,
               k_cache + following * k_dim * PAGE * size)  # fmt: skip
        page = following


@kernel
def _merge(state, shape, position, window, sunk, segment, total):
    """Merge a segment into the total of the rows that see it."""
    rows, group, _, v_pad, _ = shape
    start = segment * SEGMENT_PAGES * PAGE
    first, last = _live(position, rows, window, start, start + SEGMENT_PAGES * PAGE)
    for row in range(first * group, last * group):
        earlier = start > 0 and (window == 0 or position + row // group - window + 1 < start)
        if earlier or sunk:
            merge_row(state, rows * group, v_pad, row, total)
        else:
            copy_row(state, rows * group, v_pad, row, total)


@kernel
def _attend_item(items, i, partials, floats, scratch, q, out, shape, heads, v_dim, position, rule,
                 pages, sinks, zeros):  # fmt: skip
    """One item; whoever does the last part of a cut tile merges them all."""
    rows, group, k_dim, v_pad, _ = shape
    item, window, head, size = items[i], rule[0], pages[1], shape[0] * shape[1]
    scores = (scratch + LINE - 1) // LINE * LINE + LINE
    total = scores + TILE_ROWS * PAGE * 4
    state = total + state_floats(size, v_pad) * 4
    queries = q + head * group * k_dim * 4
    if rows > 1:
        copied = state + state_floats(size, v_pad) * 4
        for row in range(rows):
            source = f32_at(queries + row * heads * k_dim * 4, group * k_dim)
            f32_at(copied + row * group * k_dim * 4, group * k_dim)[:] = source
        queries = copied
    if sinks:
        sink(total, size, v_pad, sinks + head * group * 4, group)
    start = max(item[START], (position - window + 1) // PAGE) if window else item[START]
    part, parts = item[START] // SEGMENT_PAGES, item[PARTS]
    slots = partials + item[SLOT] * floats * 4
    while start < item[STOP]:
        segment = start // SEGMENT_PAGES
        stop = min(item[STOP], (segment + 1) * SEGMENT_PAGES)
        place = slots + part * floats * 4 if parts > 1 else state
        attend_segment(queries, shape, position, rule, pages, start, stop, scores, place, zeros)
        if parts == 1:
            _merge(state, shape, position, window, sinks != 0, segment, total)
        start = stop
    if parts > 1:
        done = items[i - part : i - part + 1, DONE]
        if take(done.ctypes.data, parts) < parts - 1:
            return
        done[0] = 0
        for segment in range(parts):
            _merge(slots + segment * floats * 4, shape, position, window, sinks != 0, segment,
                   total)  # fmt: skip
    for row in range(size):
        at = (row // group * heads + head * group + row % group) * v_dim
        divide_row(total, size, v_pad, row, out + at * 4, v_dim)


@kernel
def attend(region, items, partials, q, out, positions, heads, kv_heads, k_dim, v_dim, tables,
           k_cache, v_cache, size, scale, window, softcap, sinks, zeros):  # fmt: skip
    """Causal attention of a step's queries over their pages: a region of ``items``.

    Args:
        region: its counters.
        items: from ``work_items``.  partials: ``state_floats`` for each of its slots.
        q, out: addresses. [T, heads, k_dim], [T, heads, v_dim]
        tables: each sequence's page ids.
        k_cache, v_cache: addresses of this layer's pages.  size: bytes of a number there.
        window: 0 for none.  softcap: 0 for none.  sinks: address of [heads] values, or 0.
    """
    group, v_pad, most = heads // kv_heads, padded(v_dim), 0
    for i in range(items.shape[0]):
        most = max(most, items[i, ROWS] * group)
    floats = 2 * state_floats(most, v_pad) + most * k_dim + TILE_ROWS * PAGE + 2 * LINE // 4
    scratch = np.empty(floats, np.float32)
    i = take(region, items.shape[0])
    while i < items.shape[0]:
        first, table = items[i, FIRST], tables[items[i, SEQUENCE]]
        shape = (items[i, ROWS], group, k_dim, v_pad, size)
        _attend_item(items, i, partials.ctypes.data, partials.shape[1], scratch.ctypes.data,
                     q + first * heads * k_dim * 4, out + first * heads * v_dim * 4, shape, heads,
                     v_dim, positions[first], (window, scale, softcap),
                     (table, items[i, HEAD], kv_heads, k_cache, v_cache), sinks,
                     zeros)  # fmt: skip
        i = done_take(region, items.shape[0])
    wait(region, items.shape[0])


@parallel_kernel
def attention(threads, q, k, v, query_start, positions, tables, items, partials, k_cache, v_cache,
              size, kv_heads, scale, window, softcap, sinks, zeros, out):  # fmt: skip
    """Write ``k`` and ``v`` [T, kv_heads, dim] to their pages, then attend causally.

    Args:
        threads: size of the team.
        q: [T, heads, k_dim].  out: [T, heads, v_dim].  All contiguous binary32.
        items: from ``work_items``.  partials: a row for each of its slots.
        k_cache, v_cache, size: as ``attend`` has them.
        sinks: address of [heads] values, or 0.  zeros: 64 zeros.
    """
    tokens, heads, k_dim = q.shape
    v_dim = out.shape[2]
    q0, k0, v0, out0 = q.ctypes.data, k.ctypes.data, v.ctypes.data, out.ctypes.data
    zero = zeros.ctypes.data
    sequence = np.empty(tokens, np.int64)
    for r in range(query_start.size - 1):
        sequence[query_start[r] : query_start[r + 1]] = r
    team = regions(2)
    for thread in prange(threads):
        before = enter()
        writing = team.ctypes.data + end_of(thread, threads)
        t = take(writing, tokens)
        while t < tokens:
            write_cache(k0 + t * kv_heads * k_dim * 4, v0 + t * kv_heads * v_dim * 4,
                        positions[t], tables[sequence[t]], kv_heads, k_dim, v_dim, k_cache,
                        v_cache, size)  # fmt: skip
            t = done_take(writing, tokens)
        wait(writing, tokens)
        attend(writing + REGION, items, partials, q0, out0, positions, heads, kv_heads, k_dim,
               v_dim, tables, k_cache, v_cache, size, scale, window, softcap, sinks,
               zero)  # fmt: skip
        leave(before)
