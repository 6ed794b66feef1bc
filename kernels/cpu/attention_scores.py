"""One row's scores of a block of 64 keys: scaled, capped, and made weights (rule 3)."""

from __future__ import annotations

from numba import types

from detinfer.kernels.cpu import elementary
from detinfer.kernels.cpu.vector import (
    ADDRESS,
    LANES,
    WIDE,
    Emit,
    const64,
    halving_tree,
    lane_indices,
    row_intrinsic,
)


def _visible(b, v, low, high):
    """Which of the v-th sixteen keys of a block lie in [low, high)."""
    e = Emit(b)
    index = lane_indices(LANES, v * LANES)
    return b.and_(
        b.icmp_signed(">=", index, e.splat(low)), b.icmp_signed("<", index, e.splat(high))
    )


def _scale_and_max(b, s, low, high, scale, softcap):
    """Scores of one row in place, scaled (and capped); returns the largest visible one."""
    e = Emit(b)
    capped = b.fcmp_ordered(">", softcap, Emit(b, 1).const(0.0))
    cap = e.splat(softcap)
    best = []
    for v in range(WIDE // LANES):
        at = const64(v * LANES)
        value = e.mul(e.load(s, at), e.splat(scale))
        before = b.block
        with b.if_then(capped):
            soft = e.mul(cap, elementary.tanh(e, e.div(value, cap)))
            inside = b.block
        value_phi = b.phi(e.f32)
        value_phi.add_incoming(value, before)
        value_phi.add_incoming(soft, inside)
        e.store(value_phi, s, at)
        best.append(e.select(_visible(b, v, low, high), value_phi, e.const(float("-inf"))))
    return halving_tree(b, best, lambda x, y: b.select(b.fcmp_ordered("<", x, y), y, x))


def _weights(b, s, low, high, m):
    """Weights exp(s - m) of one row in place, +0 where masked; returns the halving tree over 64."""
    e = Emit(b)
    p = []
    for v in range(WIDE // LANES):
        at = const64(v * LANES)
        value = elementary.exp(e, e.sub(e.load(s, at), e.splat(m)))
        value = e.select(_visible(b, v, low, high), value, e.const(0.0))
        e.store(value, s, at)
        p.append(value)
    return halving_tree(b, p, b.fadd)


_f32 = types.float32
scale_and_max = row_intrinsic(_f32, [ADDRESS, ADDRESS, ADDRESS, _f32, _f32], _scale_and_max)
weights = row_intrinsic(_f32, [ADDRESS, ADDRESS, ADDRESS, _f32], _weights)
