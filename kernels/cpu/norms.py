"""RMSNorm in its three variants and LayerNorm, one row at a time (docs/arithmetic.md, rule 2)."""

from __future__ import annotations

import numpy as np
from numba import prange, types

from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.vector import (
    ADDRESS,
    div,
    f32_at,
    fold_lanes,
    halving_tree,
    row_intrinsic,
    sqrt,
)

SCALE_ROUNDED, ROUND_SCALED, ONE_PLUS, UNSCALED = range(4)


def _sum(b, x, n):
    lanes = fold_lanes(b, n, 0.0, lambda e, lane, load: e.add(lane, load(x)))
    return halving_tree(b, lanes, b.fadd)


def _sum_of_squares(b, x, n):
    def fold(e, lane, load):
        value = load(x)
        return e.fma(value, value, lane)

    return halving_tree(b, fold_lanes(b, n, 0.0, fold), b.fadd)


lane_sum = row_intrinsic(types.float32, [ADDRESS, ADDRESS], _sum)
lane_sum_of_squares = row_intrinsic(types.float32, [ADDRESS, ADDRESS], _sum_of_squares)


@kernel
def rms_norm_row(x, n, w, eps, variant, out):
    """One row: addresses of [n] binary32 values (``w`` is 0 for UNSCALED)."""
    q = lane_sum_of_squares(x, n)
    r = div(np.float32(1), sqrt(div(q, np.float32(n)) + eps))
    source, target = f32_at(x, n), f32_at(out, n)
    if variant == UNSCALED:
        for i in range(n):
            target[i] = source[i] * r
    elif variant == ONE_PLUS:
        weight = f32_at(w, n)
        for i in range(n):
            target[i] = (source[i] * r) * (np.float32(1) + weight[i])
    else:
        weight = f32_at(w, n)
        for i in range(n):
            target[i] = (source[i] * r) * weight[i]


@parallel_kernel
def rms_norm(x, w, eps, variant, out):
    """Every row of ``x`` [rows, n]; ``w`` is the weight's address."""
    rows, n = x.shape
    x0, out0 = x.ctypes.data, out.ctypes.data
    for row in prange(rows):
        before = enter()
        rms_norm_row(x0 + row * n * 4, n, w, eps, variant, out0 + row * n * 4)
        leave(before)


@parallel_kernel
def layer_norm(x, w, bias, eps, out):
    """Every row of ``x`` [rows, n]; ``w`` and ``bias`` are addresses, 0 for none."""
    rows, n = x.shape
    x0, out0 = x.ctypes.data, out.ctypes.data
    size = np.float32(n)
    for row in prange(rows):
        before = enter()
        source, target = f32_at(x0 + row * n * 4, n), f32_at(out0 + row * n * 4, n)
        mean = div(lane_sum(x0 + row * n * 4, n), size)
        for i in range(n):
            target[i] = source[i] - mean
        variance = div(lane_sum_of_squares(out0 + row * n * 4, n), size)
        r = div(np.float32(1), sqrt(variance + eps))
        for i in range(n):
            target[i] = target[i] * r
        if w:
            weight = f32_at(w, n)
            for i in range(n):
                target[i] = target[i] * weight[i]
        if bias:
            added = f32_at(bias, n)
            for i in range(n):
                target[i] = target[i] + added[i]
        leave(before)
