"""What is computed from a row of logits: softmax, log_softmax, argmax, checksum (rules 6 and 8)."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils

from detinfer.kernels import constants as c
from detinfer.kernels.cpu import elementary
from detinfer.kernels.cpu.elementary import log32
from detinfer.kernels.cpu.jit import parallel_kernel
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.vector import (
    ADDRESS,
    LANES,
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


KEYS = c.CHECKSUM_KEYS


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


class _Lanes:
    """What a summary keeps of each of so many lanes: the largest, where it was, a NaN, two sums."""

    def __init__(self, b, lanes: int) -> None:
        self.b, self.e = b, Emit(b, lanes)
        e = self.e
        starts = (e.const(float("-inf")), e.int32(0), e.int32(0), e.int64(0), e.int64(0))
        self.slots = [cgutils.alloca_once_value(b, start) for start in starts]

    def add(self, x, first, i) -> None:
        """Take in the values of row ``x`` from its i-th on, which has index ``first`` + i."""
        b, e = self.b, self.e
        value, (top, place, odd, *sums) = e.load(x, i), map(b.load, self.slots)
        larger = e.less(top, value)
        nan = b.fcmp_unordered("uno", value, value)
        index = e.splat(b.add(first, i))
        if e.lanes > 1:
            index = b.add(index, lane_indices(e.lanes, 0))
        bits = b.zext(e.select(nan, e.int32(0x7FC00000), e.bits(value)), e.i64)
        bits = b.add(bits, b.shl(index, e.int64(32)))
        new = [
            e.select(larger, value, top),
            e.select(larger, e.splat(b.trunc(i, ir.IntType(32))), place),
            b.or_(odd, b.zext(nan, e.i32)),
            *(b.add(total, _mixed(e, bits, key)) for total, key in zip(sums, KEYS, strict=True)),
        ]
        for value, slot in zip(new, self.slots, strict=True):
            b.store(value, slot)

    def each(self):
        """Yield the lanes one by one."""
        kept = [self.b.load(slot) for slot in self.slots]
        for lane in range(self.e.lanes):
            at = ir.Constant(ir.IntType(32), lane)
            parts = [self.b.extract_element(v, at) for v in kept] if self.e.lanes > 1 else kept
            parts[1] = self.b.add(parts[1], at)
            yield parts


def _mixed(e: Emit, bits, key: int):
    """splitmix64 of 64-bit integers plus a key."""
    b, z = e.b, e.b.add(bits, e.int64(_signed((key + c.SPLITMIX_GAMMA) % 2**64)))
    for shift, factor in ((30, c.SPLITMIX_MUL1), (27, c.SPLITMIX_MUL2)):
        z = b.mul(b.xor(z, b.lshr(z, e.int64(shift))), e.int64(_signed(factor)))
    return b.xor(z, b.lshr(z, e.int64(31)))


def _summary(b, x, first, n, top, place, sums):
    """Summarise ``n`` logits at ``x``, the first of which has index ``first``, in one pass.

    Addresses get: the largest of them, +Inf where one is NaN; the lowest index that has it; their
    part of the checksum's two sums. Such sums have no order.
    """
    one, wide = _Lanes(b, 1), _Lanes(b, LANES)
    map_row(b, n, lambda e, i: (wide if e.lanes > 1 else one).add(x, first, i))
    best, at, odd, *totals = next(one.each())
    for value, index, nan, *parts in wide.each():
        equal = b.and_(b.fcmp_ordered("==", value, best), b.icmp_signed("<", index, at))
        better = b.or_(b.fcmp_ordered(">", value, best), equal)
        best, at = b.select(better, value, best), b.select(better, index, at)
        odd, totals = b.or_(odd, nan), list(map(b.add, totals, parts))
    e = Emit(b, 1)
    insane = b.icmp_signed("!=", odd, e.int32(0))
    e.store(b.select(insane, e.const(float("inf")), best), top)
    e.store(b.add(first, b.zext(at, e.i64)), place)
    for i, total in enumerate(totals):
        e.store(total, b.add(sums, e.int64(8 * i)))


row_max = row_intrinsic(types.float32, [ADDRESS, ADDRESS], _max)
exp_sum = row_intrinsic(types.float32, [ADDRESS, types.float32, ADDRESS], _exp_sum)
exp_row = row_intrinsic(types.void, [ADDRESS, types.float32, ADDRESS, ADDRESS], _exp_row)
summary = row_intrinsic(types.void, [ADDRESS] * 6, _summary)

NEVER = np.float32(-np.inf)  # the logit of a token that is never chosen
ZERO = np.uint64(0)
CHUNK = 4096  # logits that a thread summarises at a time


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


@parallel_kernel
def summarise(x, best, sums):
    """Argmax and checksum of every row of ``x`` [rows, n].

    Args:
        best: lowest index of the largest value [rows]; -1 where one is NaN or +Inf, or all are
            -Inf.
        sums: rule 8's two sums. [rows, 2] uint64
    """
    rows, n = x.shape
    chunks = (n + CHUNK - 1) // CHUNK
    tops, places = np.empty(rows * chunks, np.float32), np.empty(rows * chunks, np.int64)
    parts = np.empty((rows * chunks, 2), np.uint64)
    x0, top0, place0, part0 = x.ctypes.data, tops.ctypes.data, places.ctypes.data, parts.ctypes.data
    for item in prange(rows * chunks):
        before = enter()
        row, first = item // chunks, item % chunks * CHUNK
        summary(x0 + (row * n + first) * 4, first, min(CHUNK, n - first),
                top0 + item * 4, place0 + item * 8, part0 + item * 16)  # fmt: skip
        leave(before)
    for row in range(rows):
        top, at = NEVER, -1
        sums[row, 0], sums[row, 1] = ZERO, ZERO
        for item in range(row * chunks, (row + 1) * chunks):
            if tops[item] > top:
                top, at = tops[item], places[item]
            for i in range(2):  # one by one: two arrays' sum would be a parallel loop
                sums[row, i] += parts[item, i]
        best[row] = at if top < np.float32(np.inf) else -1
