"""Batch-invariant linear layer and embedding over one packed weight (docs/arithmetic.md, rule 1).

A weight [N, K] is stored in panels of 64 output columns, [ceil(N / 64), K, 64], so that a tile
reads it front to back whatever the number of rows. In bf16 the columns j and 16 + j of each 32 lie
side by side: as microkernel.py's PAIRS. How rows and panels are dealt out is free, since each
output's chain runs over k alone.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.microkernel import tile_bf16, tile_f32
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.vector import f32_at, u16_at

PANEL = 64
ROWS = 24  # rows that go through a panel together
STRETCH = 24576  # bytes of a panel that stay in the first-level cache while rows go through it
ZEROS = np.zeros(PANEL, np.float32)


@kernel
def segments(k):
    """Rule 1's S."""
    for s in (8, 4, 2):
        if k % (64 * s) == 0:
            return s
    return 1


@kernel
def tile_rows(rows, x, k, w, bf16, following, zeros, parts):
    """parts[0] = rows x 64 finished sums of one panel.

    Args:
        x: address of binary32 rows, contiguous; at most ROWS of them. [rows, k]
        w: address of the panel; ``bf16`` says which storage.
        following: address of the panel that is read next.
        zeros: address of 64 zeros, where every chain starts.
        parts: scratch. [8, ROWS * 64]
    """
    s, size = segments(k), PANEL * (2 if bf16 else 4)
    span, depth = k // s, STRETCH // size
    for part in range(s):
        start, stride, target = zeros, 0, parts[part].ctypes.data
        for first in range(part * span, (part + 1) * span, depth):
            count = min(depth, (part + 1) * span - first)
            left, right = x + first * 4, w + first * size
            ahead = right + count * size if first + count < k else following
            if bf16:
                tile_bf16(rows, left, k, right, PANEL, start, stride, target, PANEL, count, ahead)
            else:
                tile_f32(rows, left, k, right, PANEL, start, stride, target, PANEL, count, ahead)
            start, stride = target, PANEL
    add_tree(parts, s, rows * PANEL)


@kernel
def panel_address(w, bf16, k, panel):
    return w + panel * k * PANEL * (2 if bf16 else 4)


@kernel
def linear_panel(x, m, k, w, bf16, panel, bias, out, n, zeros):
    """One panel, up to 64 of ``n`` outputs, for ``m`` rows; addresses in bytes (bias may be 0)."""
    parts = np.empty((segments(k), ROWS * PANEL), np.float32)
    columns = min(PANEL, n - panel * PANEL)
    weights, following = panel_address(w, bf16, k, panel), panel_address(w, bf16, k, panel + 1)
    for row in range(0, m, ROWS):
        rows = min(ROWS, m - row)
        tile_rows(rows, x + row * k * 4, k, weights, bf16, following, zeros, parts)
        _write(parts[0], rows, columns, bias, panel, out + (row * n + panel * PANEL) * 4, n)


@kernel
def add_tree(parts, s, count):
    """parts[0] = the balanced adjacent tree over parts[:s], element by element."""
    step = 1
    while step < s:
        for i in range(0, s, 2 * step):
            low, high = parts[i], parts[i + step]
            for j in range(count):
                low[j] = low[j] + high[j]
        step *= 2


@kernel
def _write(part, rows, columns, bias, panel, out, n):
    for r in range(rows):
        source, target = part[r * PANEL : (r + 1) * PANEL], f32_at(out + r * n * 4, columns)
        if bias:
            added = f32_at(bias + panel * PANEL * 4, columns)
            for j in range(columns):
                target[j] = source[j] + added[j]
        else:
            for j in range(columns):
                target[j] = source[j]


@kernel
def row_blocks(m):
    """Blocks that rows are dealt out in, so that few panels still fill every thread."""
    return 1 if m < 12 else max(2, m // 96)


@parallel_kernel
def linear(x, w, bf16, n, bias, zeros, out):
    """``out[m, n] = x[m, k] @ w.T (+ bias)``; ``w`` and ``bias`` are addresses (bias may be 0)."""
    m, k = x.shape
    x0, out0, zeros0 = x.ctypes.data, out.ctypes.data, zeros.ctypes.data
    blocks = row_blocks(m)
    size = (m + blocks - 1) // blocks
    for item in prange((n + PANEL - 1) // PANEL * blocks):
        before = enter()
        row = item % blocks * size
        rows = min(size, m - row)
        at, to = x0 + row * k * 4, out0 + row * n * 4
        linear_panel(at, rows, k, w, bf16, item // blocks, bias, to, n, zeros0)
        leave(before)


@kernel
def embedding_row(token, k, w, bf16, out):
    """Row ``token`` of a packed weight, widened to binary32 at address ``out``."""
    panel, column = token // PANEL * k * PANEL, token % PANEL
    target = f32_at(out, k)
    if bf16:
        place = column // 32 * 32 + column % 16 * 2 + column // 16 % 2
        table = u16_at(w + (panel + place) * 2, k * PANEL)
        bits = target.view(np.uint32)
        for i in range(k):
            bits[i] = np.uint32(table[i * PANEL]) << np.uint32(16)
    else:
        values = f32_at(w + (panel + column) * 4, k * PANEL)
        for i in range(k):
            target[i] = values[i * PANEL]


@parallel_kernel
def embedding(ids, k, w, bf16, out):
    """``out[t] = weight[ids[t]]``."""
    out0 = out.ctypes.data
    for t in prange(ids.size):
        before = enter()
        embedding_row(ids[t], k, w, bf16, out0 + t * k * 4)
        leave(before)
