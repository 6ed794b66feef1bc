"""What attention keeps of its rows: maxima m, sums l and outputs o, in this order (rule 3)."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.core import cgutils

from detinfer.kernels.cpu import elementary
from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.vector import (
    ADDRESS,
    LANES,
    Emit,
    const64,
    f32_at,
    map_row,
    row_intrinsic,
)

MINUS_INF = np.float32(-np.inf)


@kernel
def state_floats(size, v_pad):
    """Return how many floats the state of ``size`` rows takes: whole cache lines."""
    return (size * (2 + v_pad) + LANES - 1) // LANES * LANES


@kernel
def clear(state, size, v_pad):
    """Begin a segment: with m = -Inf the first block's alpha is exp(-Inf) = +0."""
    f32_at(state, size)[:] = MINUS_INF
    f32_at(state + size * 4, size * (1 + v_pad))[:] = np.float32(0)


@kernel
def sink(state, size, v_pad, sinks, group):
    """Begin a total with its heads' sinks, a segment before all others. sinks [group]"""
    m, values = f32_at(state, size), f32_at(sinks, group)
    for row in range(size):
        m[row] = values[row % group]
    f32_at(state + size * 4, size)[:] = np.float32(1)
    f32_at(state + 2 * size * 4, size * v_pad)[:] = np.float32(0)


def _each_vector(b, width, body):
    """``body(emit, offset)`` for every sixteen of ``width`` values."""
    with cgutils.for_range(b, b.sdiv(width, const64(LANES))) as loop:
        body(Emit(b), b.mul(loop.index, const64(LANES)))


def _places(b, state, size, width, row):
    """Addresses of a row's m, l and o."""
    four = const64(4)
    m = b.add(state, b.mul(row, four))
    l = b.add(m, b.mul(size, four))  # noqa: E741
    first = b.add(b.add(size, size), b.mul(row, width))
    return m, l, b.add(state, b.mul(first, four))


def _merge(b, state, size, width, row, total):
    one = Emit(b, 1)
    m2, l2, o2 = _places(b, state, size, width, row)
    m1, l1, o1 = _places(b, total, size, width, row)
    m = one.max(one.load(m1), one.load(m2))
    a1, a2 = (elementary.exp(one, one.sub(one.load(old), m)) for old in (m1, m2))
    one.store(m, m1)
    one.store(one.fma(one.load(l2), a2, one.mul(one.load(l1), a1)), l1)

    def step(e, at):
        kept = e.mul(e.load(o1, at), e.splat(a1))
        e.store(e.fma(e.load(o2, at), e.splat(a2), kept), o1, at)

    _each_vector(b, width, step)


def _copy(b, state, size, width, row, total):
    one = Emit(b, 1)
    m2, l2, o2 = _places(b, state, size, width, row)
    m1, l1, o1 = _places(b, total, size, width, row)
    one.store(one.load(m2), m1)
    one.store(one.load(l2), l1)
    _each_vector(b, width, lambda e, at: e.store(e.load(o2, at), o1, at))


def _divide(b, total, size, width, row, out, v_dim):
    _, l, o = _places(b, total, size, width, row)  # noqa: E741
    total_l = Emit(b, 1).load(l)
    map_row(b, v_dim, lambda e, at: e.store(e.div(e.load(o, at), e.splat(total_l)), out, at))


_copy_row = row_intrinsic(types.void, [ADDRESS] * 5, _copy)
_merge_row = row_intrinsic(types.void, [ADDRESS] * 5, _merge)
_divide_row = row_intrinsic(types.void, [ADDRESS] * 6, _divide)


@kernel
def copy_row(state, size, v_pad, row, total):
    """Make a row's first segment its total."""
    _copy_row(state, size, v_pad, row, total)


@kernel
def merge_row(state, size, v_pad, row, total):
    """Merge a row of a segment into its total."""
    _merge_row(state, size, v_pad, row, total)


@kernel
def divide_row(total, size, v_pad, row, out, v_dim):
    """``out = o / l``. [v_dim]"""
    _divide_row(total, size, v_pad, row, out, v_dim)
