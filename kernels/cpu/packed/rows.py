"""Activation rows, quantised by groups of 32 (docs/arithmetic.md, rule 1q).

Rows go by tiles of six, the last one smaller. A tile has a *record* of each group and row, groups
ascending, a group's rows side by side: 32 bytes of q, then dx, dx * sum of q (binary32), and minus
the sums of the first and the last sixteen q (int32).
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

from detinfer.kernels import constants as c
from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.vector import (
    ADDRESS,
    F32,
    I32,
    LANES,
    Emit,
    const64,
    row_intrinsic,
)

TILE_ROWS = 6
RECORD = 48
DX, SCALED_SUM, SUMS = 32, 36, 40  # offsets into a record
MAGIC = c.ROUND_MAGIC
NOT_FINITE = 0x7F800000


def _reduce(b, name, vector):
    kind = ir.FunctionType(I32, [vector.type])
    function = b.module.globals.get(f"llvm.vector.reduce.{name}.v{LANES}i32")
    if function is None:
        function = ir.Function(b.module, kind, f"llvm.vector.reduce.{name}.v{LANES}i32")
    return b.call(function, [vector])


def _group(b, x, record):
    """Quantise the 32 values at ``x``."""
    e, one = Emit(b), Emit(b, 1)
    halves = [e.load(x, const64(i)) for i in (0, LANES)]
    first, last = (b.and_(e.bits(v), e.int32(0x7FFFFFFF)) for v in halves)
    largest = _reduce(b, "umax", b.select(b.icmp_unsigned("<", first, last), last, first))
    finite = b.icmp_unsigned("<", largest, ir.Constant(I32, NOT_FINITE))
    zero = b.icmp_unsigned("<", largest, one.bits(one.const(c.ZERO_BELOW)))
    a = one.as_float(largest)
    factor = e.splat(one.div(one.const(127.0), a))
    live = e.splat(b.sext(b.and_(finite, b.not_(zero)), I32))
    dx = one.select(zero, one.const(0.0), one.div(a, one.const(127.0)))
    dx = one.select(finite, dx, one.const(float("nan")))
    total = ir.Constant(I32, 0)
    for i, v in enumerate(halves):
        rounded = e.bits(e.add(e.mul(v, factor), e.const(MAGIC)))
        q = b.and_(b.sub(rounded, e.bits(e.const(MAGIC))), live)
        small = b.trunc(q, ir.VectorType(ir.IntType(8), LANES))
        b.store(small, e.pointer(record, const64(i), LANES, small.type), align=4)
        part = _reduce(b, "add", q)
        total = b.add(total, part)
        one.store(b.neg(part), record, const64(SUMS // 4 + i))
    one.store(dx, record, const64(DX // 4))
    one.store(one.mul(dx, b.sitofp(total, F32)), record, const64(SCALED_SUM // 4))


_quantise_group = row_intrinsic(types.void, [ADDRESS, ADDRESS], _group)


def quantised_bytes(k: int) -> int:
    """Bytes of a quantised row of ``k`` values."""
    return k // 32 * RECORD


@kernel
def tile_offset(tile, k):
    """Offset of a tile of rows in the quantised rows."""
    return tile * TILE_ROWS * (k // 32) * RECORD


@kernel
def quantise_groups(x, row, m, k, first, count, out):
    """Quantise ``count`` groups of row ``row`` of ``m``, of k values, from group ``first`` on.

    Their values are at address ``x``; the quantised rows at ``out``.
    """
    tile = row // TILE_ROWS
    stride = min(TILE_ROWS, m - tile * TILE_ROWS) * RECORD
    record = out + tile_offset(tile, k) + row % TILE_ROWS * RECORD + first * stride
    for group in range(count):
        _quantise_group(x + group * 128, record + group * stride)


@kernel
def quantise_row(x, row, m, k, out):
    """Quantise row ``row`` of ``m``, at address ``x``, into the quantised rows at ``out``."""
    quantise_groups(x, row, m, k, 0, k // 32, out)
