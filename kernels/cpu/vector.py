"""Emitting LLVM vector code inside Numba: one class of typed operations and a few loop shapes.

Numba alone would leave vectorising to LLVM's luck. Here each operation is one IR instruction on
``lanes`` binary32 values (LLVM splits a 16-lane vector to whatever the CPU has: the same bits), and
the same emitter with one lane does the tail of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from detinfer.kernels.cpu.jit import FEATURES, kernel

LANES = 16
WIDE = 64  # lanes of a contractual sum: four vectors

F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
ADDRESS = types.intp


def const64(value: int):
    return ir.Constant(I64, value)


class Emit:
    """Operations on vectors of ``lanes`` values (plain scalars for one lane)."""

    def __init__(self, builder: ir.IRBuilder, lanes: int = LANES) -> None:
        self.b, self.lanes = builder, lanes
        self.f32, self.i16, self.i32, self.i64 = (
            t if lanes == 1 else ir.VectorType(t, lanes) for t in (F32, I16, I32, I64)
        )
        self.suffix = "f32" if lanes == 1 else f"v{lanes}f32"

    def _constant(self, kind, value):
        return ir.Constant(kind, value if self.lanes == 1 else [value] * self.lanes)

    def const(self, value: float):
        return self._constant(self.f32, value)

    def int32(self, value: int):
        return self._constant(self.i32, value)

    def int64(self, value: int):
        return self._constant(self.i64, value)

    def splat(self, scalar):
        if self.lanes == 1:
            return scalar
        kind = ir.VectorType(scalar.type, self.lanes)
        first = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)

    def pointer(self, address, offset=None, item: int = 4, kind=None):
        """Pointer to ``address + offset * item`` bytes."""
        if offset is not None:
            address = self.b.add(address, self.b.mul(offset, const64(item)))
        return self.b.inttoptr(address, (kind or self.f32).as_pointer())

    def load(self, address, offset=None):
        return self.b.load(self.pointer(address, offset), align=4)

    def load_bf16(self, address, offset=None):
        """Widening bf16 is a shift: exact."""
        raw = self.b.load(self.pointer(address, offset, 2, self.i16), align=2)
        return self.as_float(self.b.shl(self.b.zext(raw, self.i32), self.int32(16)))

    def load_bf16_pairs(self, address, offset=None):
        """Two vectors of bf16, one in the lower halves of 32-bit words and one in the upper.

        Each is widened by one operation: that is half of what ``load_bf16`` takes.
        """
        words = self.b.load(self.pointer(address, offset, 2, self.i32), align=2)
        lower = self.b.shl(words, self.int32(16))
        return [self.as_float(half) for half in (lower, self.b.and_(words, self.int32(-(1 << 16))))]

    def load_integers(self, address, kind):
        """Integers of a type, at an address that is a multiple of their size."""
        wide = kind if self.lanes == 1 else ir.VectorType(kind, self.lanes)
        return self.b.load(self.pointer(address, kind=wide), align=kind.width // 8)

    def widen_half(self, raw):
        """Binary16 numbers, given as 16-bit integers, widened: exact."""
        if "f16c" in FEATURES:
            half = ir.HalfType() if self.lanes == 1 else ir.VectorType(ir.HalfType(), self.lanes)
            return self.b.fpext(self.b.bitcast(raw, half), self.f32)
        wide = self.b.zext(raw, self.i32)
        magnitude = self.b.shl(self.b.and_(wide, self.int32(0x7FFF)), self.int32(13))
        scaled = self.mul(self.as_float(magnitude), self.const(2.0**112))
        sign = self.b.shl(self.b.and_(wide, self.int32(0x8000)), self.int32(16))
        return self.as_float(self.b.or_(self.bits(scaled), sign))

    def store(self, value, address, offset=None) -> None:
        self.b.store(value, self.pointer(address, offset, kind=value.type), align=4)

    def prefetch(self, address, once: bool = False) -> None:
        """Ask for the cache line of an address, which may lie past all memory.

        A line that is read ``once`` pushes none out of the larger caches.
        """
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        read, keep, data = (ir.Constant(I32, value) for value in (0, 0 if once else 3, 1))
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        self.b.call(function, [self.b.inttoptr(address, pointer), read, keep, data])

    def call(self, name: str, *args):
        kind = ir.FunctionType(self.f32, [self.f32] * len(args))
        function = cgutils.get_or_insert_function(self.b.module, kind, f"llvm.{name}.{self.suffix}")
        return self.b.call(function, args)

    def fma(self, a, b, c):
        return self.call("fma", a, b, c)

    def add(self, a, b):
        return self.b.fadd(a, b)

    def sub(self, a, b):
        return self.b.fsub(a, b)

    def mul(self, a, b):
        return self.b.fmul(a, b)

    def div(self, a, b):
        return self.b.fdiv(a, b)

    def sqrt(self, a):
        return self.call("sqrt", a)

    def bits(self, a):
        return self.b.bitcast(a, self.i32)

    def as_float(self, a):
        return self.b.bitcast(a, self.f32)

    def neg(self, a):
        return self.as_float(self.b.xor(self.bits(a), self.int32(-(1 << 31))))

    def abs(self, a):
        return self.as_float(self.b.and_(self.bits(a), self.int32(0x7FFFFFFF)))

    def copysign(self, magnitude, sign):
        sign_bit = self.b.and_(self.bits(sign), self.int32(-(1 << 31)))
        return self.as_float(self.b.or_(self.bits(self.abs(magnitude)), sign_bit))

    def less(self, a, b):
        return self.b.fcmp_ordered("<", a, b)

    def select(self, condition, a, b):
        return self.b.select(condition, a, b)

    def max(self, a, b):
        return self.select(self.less(a, b), b, a)

    def horner(self, coefficients: Sequence[float], x):
        p = self.const(coefficients[0])
        for c in coefficients[1:]:
            p = self.fma(p, x, self.const(c))
        return p


def lane_indices(lanes: int, start: int):
    return ir.Constant(ir.VectorType(I64, lanes), list(range(start, start + lanes)))


def upper_half(builder, vector, width: int):
    """Lanes [width, 2 * width) of a vector of 2 * width or more."""
    index = ir.Constant(ir.VectorType(I32, width), list(range(width, 2 * width)))
    return builder.shuffle_vector(vector, vector, index)


def lower_half(builder, vector, width: int):
    index = ir.Constant(ir.VectorType(I32, width), list(range(width)))
    return builder.shuffle_vector(vector, vector, index)


def halving_tree(builder, vectors: list[Any], combine: Callable[..., Any]):
    """Reduce 64 lanes held in four vectors: v[j] = combine(v[j], v[j + w]), w = 32, 16, … 1."""
    first = combine(vectors[0], vectors[2])
    second = combine(vectors[1], vectors[3])
    row = combine(first, second)
    width = LANES // 2
    while width >= 1:
        row = combine(lower_half(builder, row, width), upper_half(builder, row, width))
        width //= 2
    return builder.extract_element(row, ir.Constant(I32, 0))


def scratch(builder, count: int):
    """Address of ``count`` floats on the stack, 64-byte aligned."""
    buffer = cgutils.alloca_once(builder, ir.ArrayType(F32, count))
    buffer.align = 64
    return builder.ptrtoint(buffer, I64)


def copy_floats(builder, source, target, count) -> None:
    one = Emit(builder, 1)
    with cgutils.for_range(builder, count) as loop:
        one.store(one.load(source, loop.index), target, loop.index)


def fold_lanes(builder, n, start: float, fold: Callable[..., Any]):
    """64 lanes over a row of ``n``: ``lanes = fold(e, lanes, address_offset, base)``.

    ``fold(emit, lane_values, load)`` returns the new lanes; ``load(address)`` reads the current
    sixteen elements of a row. Lanes past the row's end keep their value.
    """
    e = Emit(builder)
    lanes = [cgutils.alloca_once_value(builder, e.const(start)) for _ in range(WIDE // LANES)]

    def step(base, limit) -> None:
        for v, lane in enumerate(lanes):
            old = builder.load(lane)
            offset = builder.add(base, const64(v * LANES))
            if limit is None:
                builder.store(fold(e, old, lambda a, o=offset: e.load(a, o)), lane)
                continue
            index = builder.add(Emit(builder).splat(offset), lane_indices(LANES, 0))
            inside = builder.icmp_signed("<", index, e.splat(limit))

            def load_tail(address, offset=offset):
                buffer = scratch(builder, LANES)
                e.store(e.const(0.0), buffer)
                left = builder.sub(limit, offset)
                left = builder.select(
                    builder.icmp_signed(">", left, const64(LANES)), const64(LANES), left
                )
                source = builder.add(address, builder.mul(offset, const64(4)))
                copy_floats(builder, source, buffer, left)
                return e.load(buffer)

            builder.store(builder.select(inside, fold(e, old, load_tail), old), lane)

    whole = builder.sdiv(n, const64(WIDE))
    with cgutils.for_range(builder, whole) as loop:
        step(builder.mul(loop.index, const64(WIDE)), None)
    done = builder.mul(whole, const64(WIDE))
    with builder.if_then(builder.icmp_signed("<", done, n)):
        step(done, n)
    return [builder.load(lane) for lane in lanes]


def map_row(builder, n, body: Callable[..., Any]) -> None:
    """``body(emit, offset)`` for every sixteen elements of a row, then for each one left."""
    whole = builder.sdiv(n, const64(LANES))
    wide, one = Emit(builder), Emit(builder, 1)
    with cgutils.for_range(builder, whole) as loop:
        body(wide, builder.mul(loop.index, const64(LANES)))
    done = builder.mul(whole, const64(LANES))
    with cgutils.for_range(builder, builder.sub(n, done)) as loop:
        body(one, builder.add(done, loop.index))


def row_intrinsic(returns, arguments: Sequence[Any], emit: Callable[..., Any]):
    """Return an ``@intrinsic`` of the given Numba types whose body is ``emit(builder, *args)``."""
    signature = returns(*arguments)
    names = "".join(f", a{i}" for i in range(len(arguments)))

    def codegen(context, builder, _signature, args):
        result = emit(builder, *args)
        return context.get_dummy_value() if result is None else result

    # numba reads the arity from the function's own parameters
    scope = {"signature": signature, "codegen": codegen}
    exec(f"def made(typing_context{names}):\n    return signature, codegen", scope)
    return intrinsic(scope["made"])


def scalar(op: str, arity: int):
    """Make a binary32 scalar operation an intrinsic: Numba's own ``/`` computes in binary64."""
    return row_intrinsic(
        types.float32,
        [types.float32] * arity,
        lambda builder, *args: getattr(Emit(builder, 1), op)(*args),
    )


def _emit_pointer(kind):
    return lambda builder, address: builder.inttoptr(address, kind.as_pointer())


_f32_pointer = row_intrinsic(types.CPointer(types.float32), [ADDRESS], _emit_pointer(F32))
_u16_pointer = row_intrinsic(types.CPointer(types.uint16), [ADDRESS], _emit_pointer(I16))


@kernel
def f32_at(address, n):
    """Return the ``n`` binary32 values at ``address``, as an array."""
    return carray(_f32_pointer(address), (n,), np.float32)


@kernel
def u16_at(address, n):
    """Return the ``n`` 16-bit values at ``address``, as an array."""
    return carray(_u16_pointer(address), (n,), np.uint16)


fma = scalar("fma", 3)
div = scalar("div", 2)
sqrt = scalar("sqrt", 1)
