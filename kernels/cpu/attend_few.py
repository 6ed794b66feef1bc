"""Attention of up to sixteen rows to one another, in registers (docs/arithmetic.md, rules 3 and 9).

They fill a quarter of rule 3's block. Its other weights are +0, and a halving tree over 64 that has
zeros past the sixteenth is the tree over sixteen.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils

from detinfer.kernels.cpu.attention_scores import exp_below
from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.vector import (
    ADDRESS,
    I32,
    I64,
    LANES,
    Emit,
    const64,
    lower_half,
    map_row,
    row_intrinsic,
    scratch,
    upper_half,
)

ROWS = 3  # queries at a time: their chains wait for one another's multiplications
FEW = LANES


def _tree(b, vector, combine):
    """Halving tree over sixteen lanes."""
    for width in (8, 4, 2, 1):
        vector = combine(lower_half(b, vector, width), upper_half(b, vector, width))
    return b.extract_element(vector, ir.Constant(I32, 0))


def _attend(b, count, q, k, v, stride, order, dim, scale, columns, out, out_stride):
    e, one = Emit(b), Emit(b, 1)

    def row(base, step, i):
        place = b.add(order, b.mul(i, const64(8)))
        which = b.load(b.inttoptr(place, I64.as_pointer()))
        return b.add(base, b.mul(which, step))

    with cgutils.for_range(b, count) as keys:
        source = row(k, stride, keys.index)
        with cgutils.for_range(b, dim) as loop:
            at = b.add(b.mul(loop.index, const64(LANES)), keys.index)
            one.store(one.load(source, loop.index), columns, at)

    lanes = ir.Constant(e.i32, list(range(LANES)))
    visible = b.icmp_signed("<", lanes, e.splat(b.trunc(count, I32)))
    weights = scratch(b, ROWS * LANES)

    def attend(rows, first):
        numbers = [b.add(first, const64(r)) for r in range(rows)]
        queries = [row(q, stride, i) for i in numbers]
        sums = [cgutils.alloca_once_value(b, e.const(0.0)) for _ in numbers]
        with cgutils.for_range(b, dim) as loop:
            column = e.load(columns, b.mul(loop.index, const64(LANES)))
            for query, total in zip(queries, sums, strict=True):
                value = e.splat(one.load(query, loop.index))
                b.store(e.fma(value, column, b.load(total)), total)
        totals = []
        for r, total in enumerate(sums):
            score = e.mul(b.load(total), e.splat(scale))
            score = e.select(visible, score, e.const(float("-inf")))
            weight = exp_below(e, e.sub(score, e.splat(_tree(b, score, e.max))))
            e.store(weight, weights, const64(r * LANES))
            totals.append(_tree(b, weight, e.add))
        outs = [row(out, out_stride, i) for i in numbers]

        def mix(wide, at):
            chains = [cgutils.alloca_once_value(b, wide.const(0.0)) for _ in numbers]
            with cgutils.for_range(b, count) as loop:
                value = wide.load(row(v, stride, loop.index), at)
                for r, chain in enumerate(chains):
                    weight = one.load(weights, b.add(loop.index, const64(r * LANES)))
                    b.store(wide.fma(wide.splat(weight), value, b.load(chain)), chain)
            for chain, total, target in zip(chains, totals, outs, strict=True):
                wide.store(wide.div(b.load(chain), wide.splat(total)), target, at)

        map_row(b, dim, mix)

    whole, left = b.sdiv(count, const64(ROWS)), b.srem(count, const64(ROWS))
    with cgutils.for_range(b, whole) as loop:
        attend(ROWS, b.mul(loop.index, const64(ROWS)))
    for rows in range(1, ROWS):
        with b.if_then(b.icmp_signed("==", left, const64(rows))):
            attend(rows, b.sub(count, left))


_f32 = types.float32
_attend_few = row_intrinsic(types.void, [*[ADDRESS] * 7, _f32, *[ADDRESS] * 3], _attend)


@kernel
def attend_few(q, k, v, stride, order, dim, scale, columns, out, out_stride):
    """``attend_rows`` for at most FEW rows. columns: address of [dim, FEW] floats of scratch."""
    _attend_few(order.size, q, k, v, stride, order.ctypes.data, dim, scale, columns, out,
                out_stride)  # fmt: skip
