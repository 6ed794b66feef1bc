"""Scores of rows that see the same keys of a block of 64: capped, and made weights (rule 3)."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils

from detinfer.kernels import constants as c
from detinfer.kernels.cpu import elementary
from detinfer.kernels.cpu.microkernel import TILE_ROWS
from detinfer.kernels.cpu.vector import ADDRESS, I32, LANES, WIDE, Emit, const64, row_intrinsic

VECTORS = WIDE // LANES


def exp_below(e: Emit, x):
    """Rule 4's exp for x <= 0: there its power of two takes one multiplication, an exact one."""
    z = e.fma(x, e.const(c.LOG2E), e.const(c.ROUND_MAGIC))
    n = e.sub(z, e.const(c.ROUND_MAGIC))
    r = e.fma(n, e.const(-c.LN2_HI), x)
    r = e.fma(n, e.const(-c.LN2_LO), r)
    y = e.add(e.const(1.0), e.fma(e.mul(r, r), e.horner(c.EXP, r), r))
    i = e.b.sub(e.bits(z), e.bits(e.const(c.ROUND_MAGIC)))
    y = e.mul(y, e.as_float(e.b.shl(e.b.add(i, e.int32(127)), e.int32(23))))
    return e.select(e.less(x, e.const(c.EXP_LOW)), e.const(0.0), y)


def _lanes(b, first, second, index):
    """Pick sixteen lanes of two vectors."""
    return b.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, len(index)), index))


def _halving_trees(b, rows, combine):
    """Reduce rows of 64 lanes, four vectors each, together: row r's result is in lane r."""
    trees = [combine(combine(v[0], v[2]), combine(v[1], v[3])) for v in rows]
    for width in (8, 4, 2, 1):
        low = [lane for lane in range(2 * LANES) if lane % (2 * width) < width]
        high = [lane + width for lane in low]
        pairs = [(trees[i], trees[min(i + 1, len(trees) - 1)]) for i in range(0, len(trees), 2)]
        trees = [combine(_lanes(b, *pair, low), _lanes(b, *pair, high)) for pair in pairs]
    return trees[0]


def _visible(b, low, high):
    """Which keys of a block lie in [low, high): a mask for each of its vectors."""
    e = Emit(b)
    low, count = b.trunc(low, I32), b.trunc(b.sub(high, low), I32)
    first = b.sub(ir.Constant(e.i32, list(range(LANES))), e.splat(low))
    indices = [b.add(first, e.int32(v * LANES)) for v in range(VECTORS)]
    return [b.icmp_unsigned("<", index, e.splat(count)) for index in indices]


def _weigh_rows(b, rows, s, m, l, factors, scale, low, high):  # noqa: E741
    e, few = Emit(b), Emit(b, rows)

    def first_lanes(vector):
        if rows == 1:
            return b.extract_element(vector, ir.Constant(I32, 0))
        return _lanes(b, vector, vector, list(range(rows)))

    visible, minus_inf = _visible(b, low, high), e.const(float("-inf"))
    scores = []
    for r in range(rows):
        row = [e.load(s, const64(r * WIDE + v * LANES)) for v in range(VECTORS)]
        row = [e.mul(x, e.splat(scale)) for x in row]
        scores.append([e.select(v, x, minus_inf) for v, x in zip(visible, row, strict=True)])
    before = few.load(m)
    best = few.max(before, first_lanes(_halving_trees(b, scores, e.max)))
    alpha = exp_below(few, few.sub(before, best))
    few.store(best, m)
    few.store(alpha, factors)
    weights = []
    for r, row in enumerate(scores):
        top = best if rows == 1 else b.extract_element(best, ir.Constant(I32, r))
        weights.append([exp_below(e, e.sub(x, e.splat(top))) for x in row])
        for v, weight in enumerate(weights[-1]):
            e.store(weight, s, const64(r * WIDE + v * LANES))
    few.store(few.fma(few.load(l), alpha, first_lanes(_halving_trees(b, weights, e.add))), l)


def _weigh(b, m_rows, s, m, l, factors, scale, low, high):  # noqa: E741
    """Make scores of up to TILE_ROWS rows weights, +0 for keys outside [low, high).

    The rows' m and l become those of rule 3; alpha, by which o is still to be multiplied, goes to
    ``factors``.
    """
    for rows in range(1, TILE_ROWS + 1):
        with b.if_then(b.icmp_signed("==", m_rows, const64(rows))):
            _weigh_rows(b, rows, s, m, l, factors, scale, low, high)


def _cap(b, rows, s, scale, softcap):
    """Scale and cap scores in place."""
    e = Emit(b)
    scale, cap = e.splat(scale), e.splat(softcap)
    with cgutils.for_range(b, b.mul(rows, const64(VECTORS))) as loop:
        at = b.mul(loop.index, const64(LANES))
        value = e.div(e.mul(e.load(s, at), scale), cap)
        e.store(e.mul(cap, elementary.tanh(e, value)), s, at)


_f32 = types.float32
weigh = row_intrinsic(types.void, [ADDRESS] * 5 + [_f32, ADDRESS, ADDRESS], _weigh)
cap_scores = row_intrinsic(types.void, [ADDRESS, ADDRESS, _f32, _f32], _cap)
