"""Reading a packed weight's blocks in LLVM code: some columns at once, or one."""

from __future__ import annotations

from llvmlite import ir
from numba import types

from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.packed.format import PANEL, Format
from detinfer.kernels.cpu.vector import I16, I32, I64, Emit, const64, row_intrinsic

I8 = ir.IntType(8)


class Block:
    """Emits the parts of a panel's block for ``lanes`` columns, from ``column`` on.

    ``panel`` and ``number``, the block's, are values of the emitted code, as ``column`` is.
    """

    def __init__(self, b, form: Format, panel, number, column, lanes: int) -> None:
        self.b, self.form, self.column, self.e = b, form, column, Emit(b, lanes)
        self.at = self.halves = b.add(panel, b.mul(number, const64(form.block)))
        if form.shared:
            before = b.lshr(number, const64(3))
            self.halves = b.add(panel, b.mul(before, const64(form.head + 8 * form.block)))
            self.at = b.add(self.at, b.mul(b.add(before, const64(1)), const64(form.head)))

    def _load(self, base, start: int, number: int, kind):
        """Entries of row ``number`` of rows of 64 that begin at byte ``start``."""
        b, size = self.b, kind.width // 8
        address = b.add(base, const64(start + number * PANEL * size))
        address = b.add(address, b.mul(self.column, const64(size)))
        return self.e.load_integers(address, kind)

    def _half(self, number: int):
        return self.e.widen_half(self._load(self.halves, 0, number, I16))

    def _integer(self, number: int):
        raw = self._load(self.at, 0, number, I8)
        return self.b.sitofp(self.b.sext(raw, self.e.i32), self.e.f32)

    def scale(self, group: int):
        """Emit d of one of the block's groups."""
        if self.form.shared:
            return self.e.mul(self._half(0), self._integer(group))
        return self._half(0)

    def offset(self):
        """Emit m."""
        if self.form.shared:
            return self.e.neg(self.e.mul(self._half(1), self._integer(1)))
        return self._half(1)

    def word(self, number: int):
        """Emit 32-bit words of the block's integers."""
        return self._load(self.at, self.form.scales, number, I32)


def pointer_to(function, storage: str) -> int:
    """Compile a function of addresses for one format, and return the address of its code.

    Kernels call it by that: what is compiled is the code of a model's own formats.
    """
    function.__name__ += "_" + storage  # by which it is cached
    signature = types.int64(*[types.int64] * function.__code__.co_argcount)
    dispatcher = kernel(function)
    dispatcher.compile(signature)
    made = dispatcher.overloads[signature.args]
    return int(made.library.get_pointer_to_function(made.fndesc.llvm_cfunc_wrapper_name))


def _call(b, pointer, *args):
    kind = ir.FunctionType(I64, [I64] * len(args))
    return b.call(b.inttoptr(pointer, kind.as_pointer()), args)


def caller(arguments: int):
    """Make what calls the code at an address, its first argument, with as many others."""
    return row_intrinsic(types.int64, [types.int64] * (arguments + 1), _call)
