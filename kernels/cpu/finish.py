"""Where a tile's sums go: with the bias, over what is there or added to it."""

from __future__ import annotations

from numba import types
from numba.core import cgutils

from detinfer.kernels.cpu.matmul import PANEL
from detinfer.kernels.cpu.vector import ADDRESS, const64, map_row, row_intrinsic


def _each_row(b, rows, sums, columns, bias, out, stride, store) -> None:
    """``store(emit, target, at, value)`` for every sum, its bias added."""
    with cgutils.for_range(b, rows) as loop:
        source = b.add(sums, b.mul(loop.index, const64(PANEL * 4)))
        target = b.add(out, b.mul(loop.index, b.mul(stride, const64(4))))

        def plain(e, at):
            store(e, target, at, e.load(source, at))

        def biased(e, at):
            store(e, target, at, e.add(e.load(source, at), e.load(bias, at)))

        with b.if_else(b.icmp_signed("!=", bias, const64(0))) as (then, otherwise):
            with then:
                map_row(b, columns, biased)
            with otherwise:
                map_row(b, columns, plain)


def _write(b, rows, sums, columns, bias, out, stride):
    def store(e, target, at, value):
        e.store(value, target, at)

    _each_row(b, rows, sums, columns, bias, out, stride, store)


def _add(b, rows, sums, columns, bias, factor, out, stride):
    def store(e, target, at, value):
        scaled = e.mul(value, e.splat(factor))
        e.store(e.add(e.load(target, at), scaled), target, at)

    _each_row(b, rows, sums, columns, bias, out, stride, store)


# Sums [rows, 64], plus bias if that is not 0, to rows ``stride`` elements apart:
# write_rows(rows, sums, columns, bias, out, stride): in the place of what is there.
# accumulate_rows(rows, sums, columns, bias, factor, out, stride): times factor, added to it.
write_rows = row_intrinsic(types.void, [ADDRESS] * 6, _write)
accumulate_rows = row_intrinsic(types.void, [*[ADDRESS] * 4, types.float32, ADDRESS, ADDRESS], _add)
