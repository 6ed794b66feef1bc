"""Attention of every row to every row of a board (docs/arithmetic.md, rules 3 and 9).

The queries of a tile stand for the heads of one query at the last position, which sees every key.
So pages of keys and values are what a language model's are (pages.py), copied here from rows that
may lie anywhere.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from detinfer.kernels.cpu.attend_few import FEW, attend_few
from detinfer.kernels.cpu.attention import LINE, attend_segment
from detinfer.kernels.cpu.attention_state import divide_row, merge_row, state_floats
from detinfer.kernels.cpu.attention_work import SEGMENT_PAGES
from detinfer.kernels.cpu.attention_work import TILE_ROWS as TILE
from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.microkernel import TILE_ROWS
from detinfer.kernels.cpu.pages import PAGE, padded
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.vector import f32_at


@kernel
def scratch_floats(rows, dim):
    """Return how many floats ``attend_rows`` needs for so many rows."""
    v_pad, pages, tile = padded(dim), (rows + PAGE - 1) // PAGE, min(rows, TILE)
    states = 2 * state_floats(tile, v_pad) + tile * dim
    return pages * PAGE * (dim + v_pad) + states + TILE_ROWS * PAGE + 2 * LINE // 4


@kernel
def _fill_pages(k, v, stride, order, dim, keys, values):
    """Copy rows ``order`` of keys and values to pages."""
    v_pad = padded(dim)
    for i in range(order.size):
        page, slot, at = i // PAGE, i % PAGE, order[i] * stride
        source, columns = f32_at(k + at, dim), f32_at(keys + page * dim * PAGE * 4, dim * PAGE)
        for d in range(dim):
            columns[d * PAGE + slot] = source[d]
        f32_at(values + i * v_pad * 4, dim)[:] = f32_at(v + at, dim)


@kernel
def attend_rows(q, k, v, stride, order, dim, scale, table, scratch, zeros, out, out_stride):
    """Attention of the rows ``order`` to one another, one head.

    Args:
        q, k, v, out: addresses of the first of all rows; the next is a stride of bytes further.
        order: which rows. [rows] int64
        table: 0, 1, 2, … for every page. int32
        scratch: address of ``scratch_floats``.  zeros: address of 64.
    """
    rows, v_pad = order.size, padded(dim)
    if rows <= FEW:
        attend_few(q, k, v, stride, order, dim, scale, scratch, out, out_stride)
        return
    pages, tile = (rows + PAGE - 1) // PAGE, min(rows, TILE)
    scores = (scratch + LINE - 1) // LINE * LINE + LINE
    keys = scores + TILE_ROWS * PAGE * 4
    values = keys + pages * PAGE * dim * 4
    total = values + pages * PAGE * v_pad * 4
    state = total + state_floats(tile, v_pad) * 4
    queries = state + state_floats(tile, v_pad) * 4
    _fill_pages(k, v, stride, order, dim, keys, values)
    rule = (np.int64(0), scale, np.float32(0))
    cached = (table, np.int64(0), np.int64(1), keys, values)
    for first in range(0, rows, tile):
        count = min(tile, rows - first)
        shape = (np.int64(1), count, dim, v_pad, np.int64(4))
        for i in range(count):
            f32_at(queries + i * dim * 4, dim)[:] = f32_at(q + order[first + i] * stride, dim)
        for start in range(0, pages, SEGMENT_PAGES):
            place, stop = state if start else total, min(pages, start + SEGMENT_PAGES)
            attend_segment(queries, shape, rows - 1, rule, cached, start, stop, scores, place,
                           zeros)  # fmt: skip
            if start:
                for i in range(count):
                    merge_row(state, count, v_pad, i, total)
        for i in range(count):
            divide_row(total, count, v_pad, i, out + order[first + i] * out_stride, dim)


@parallel_kernel
def attend_all(q, k, v, scale, zeros, out):
    """Attend within every board: arrays [boards, rows, dim], contiguous. zeros [64]"""
    boards, rows, dim = q.shape
    q0, k0, v0, out0 = q.ctypes.data, k.ctypes.data, v.ctypes.data, out.ctypes.data
    zero, order, stride = zeros.ctypes.data, np.arange(rows), dim * 4
    table = order.astype(np.int32)
    for board in prange(boards):
        before = enter()
        scratch = np.empty(scratch_floats(rows, dim), np.float32)
        at = board * rows * stride
        attend_rows(q0 + at, k0 + at, v0 + at, stride, order, dim, scale, table,
                    scratch.ctypes.data, zero, out0 + at, stride)  # fmt: skip
        leave(before)
