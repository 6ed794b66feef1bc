"""What is computed from a row of logits: softmax, log_softmax, argmax, checksum (rules 6 and 8)."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils

from detinfer.kernels import constants as c
from detinfer.kernels.cpu import elementary
from detinfer.kernels.cpu.elementary import log32
from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.vector import (
    ADDRESS,
    Emit,
    div,
    f32_at,
    fold_lanes,
    halving_tree,
    lane_indices,
    map_row,
    row_intrinsic,
)


def _max(b, x, n):
    lanes = fold_lanes(b, n, float("-inf"), lambda e, lane, load: e.max(lane, load(x)))
    return halving_tree(
        b, lanes, lambda low, high: b.select(b.fcmp_ordered("<", low, high), high, low)
    )


def _exp_sum(b, x, shift, n):
    def fold(e, lane, load):
        return e.add(lane, elementary.exp(e, e.sub(load(x), e.splat(shift))))

    return halving_tree(b, fold_lanes(b, n, 0.0, fold), b.fadd)


def _exp_row(b, x, shift, out, n):
    def body(e, i):
        e.store(elementary.exp(e, e.sub(e.load(x, i), e.splat(shift))), out, i)

    map_row(b, n, body)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fold_integers(b, n, bits, item, op):
    """Fold an integer of every place of a row; their sums have no order."""
    total = cgutils.alloca_once_value(b, ir.Constant(ir.IntType(bits), 0))
    wide = cgutils.alloca_once_value(b, Emit(b).int64(0) if bits == 64 else Emit(b).int32(0))

    def body(e, i):
        slot = wide if e.lanes > 1 else total
        b.store(op(b.load(slot), item(e, i)), slot)

    map_row(b, n, body)
    result, lanes = b.load(total), b.load(wide)
    for i in range(Emit(b).lanes):
        result = op(result, b.extract_element(lanes, ir.Constant(ir.IntType(32), i)))
    return result


def _checksum(b, x, n, key):
    """Sum of splitmix64 over (bits, index)."""

    def item(e, i):
        value = e.load(x, i)
        nan = e.b.fcmp_unordered("uno", value, value)
        bits = b.zext(e.select(nan, e.int32(0x7FC00000), e.bits(value)), e.i64)
        index = e.splat(i)
        if e.lanes > 1:
            index = b.add(index, lane_indices(e.lanes, 0))
        z = b.add(b.add(bits, b.shl(index, e.int64(32))), e.splat(key))
        z = b.add(z, e.int64(_signed(c.SPLITMIX_GAMMA)))
        for shift, factor in ((30, c.SPLITMIX_MUL1), (27, c.SPLITMIX_MUL2)):
            z = b.mul(b.xor(z, b.lshr(z, e.int64(shift))), e.int64(_signed(factor)))
        return b.xor(z, b.lshr(z, e.int64(31)))

    return _fold_integers(b, n, 64, item, b.add)


def _sane(b, x, n):
    """1 where no value of the row is NaN or +Inf."""

    def item(e, i):
        return b.zext(b.fcmp_unordered(">=", e.load(x, i), e.const(float("inf"))), e.i32)

    return b.icmp_signed(
        "==", _fold_integers(b, n, 32, item, b.or_), ir.Constant(ir.IntType(32), 0)
    )


row_max = row_intrinsic(types.float32, [ADDRESS, ADDRESS], _max)
exp_sum = row_intrinsic(types.float32, [ADDRESS, types.float32, ADDRESS], _exp_sum)
exp_row = row_intrinsic(types.void, [ADDRESS, types.float32, ADDRESS, ADDRESS], _exp_row)
checksum_row = row_intrinsic(types.uint64, [ADDRESS, ADDRESS, types.uint64], _checksum)
row_sane = row_intrinsic(types.boolean, [ADDRESS, ADDRESS], _sane)

NEVER = np.float32(-np.inf)  # the logit of a token that is never chosen
KEY_0, KEY_1 = (np.uint64(key) for key in c.CHECKSUM_KEYS)


@parallel_kernel
def log_softmax(x, out):
    """Rule 6 for every row of ``x`` [rows, n]."""
    rows, n = x.shape
    x0, out0 = x.ctypes.data, out.ctypes.data
    for row in prange(rows):
        before = enter()
        at = x0 + row * n * 4
        m = row_max(at, n)
        log_z = log32(exp_sum(at, m, n))
        source, target = f32_at(at, n), f32_at(out0 + row * n * 4, n)
        for i in range(n):
            target[i] = (source[i] - m) - log_z
        leave(before)


@parallel_kernel
def softmax(x, out):
    """Rule 6's softmax for every row of ``x`` [rows, n]."""
    rows, n = x.shape
    x0, out0 = x.ctypes.data, out.ctypes.data
    for row in prange(rows):
        before = enter()
        at, to = x0 + row * n * 4, out0 + row * n * 4
        m = row_max(at, n)
        z = exp_sum(at, m, n)
        exp_row(at, m, to, n)
        target = f32_at(to, n)
        for i in range(n):
            target[i] = div(target[i], z)
        leave(before)


@kernel
def argmax_row(x, n):
    """Lowest index of the largest value; -1 where one is NaN or +Inf, or all are -Inf."""
    if not row_sane(x, n):
        return -1
    m, values = row_max(x, n), f32_at(x, n)
    if m == NEVER:
        return -1
    for i in range(n):
        if values[i] == m:
            return i
    return -1


@parallel_kernel
def argmax(x, out):
    """``argmax_row`` of every row of ``x`` [rows, n]."""
    rows, n = x.shape
    x0 = x.ctypes.data
    for row in prange(rows):
        before = enter()
        out[row] = argmax_row(x0 + row * n * 4, n)
        leave(before)


@parallel_kernel
def checksum(x, out):
    """Rule 8's two sums of every row of ``x`` [rows, n], into ``out`` [rows, 2] uint64."""
    rows, n = x.shape
    x0 = x.ctypes.data
    for item in prange(rows * 2):
        before = enter()
        row = item // 2
        out[row, item % 2] = checksum_row(x0 + row * n * 4, n, KEY_1 if item % 2 else KEY_0)
        leave(before)
