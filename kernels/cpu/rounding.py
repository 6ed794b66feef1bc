"""Rounding to nearest, subnormals kept: in whichever thread computes (docs/arithmetic.md).

Both are settings of a thread: a control word, inherited when the thread is born and changed by
libraries as they like. So every item that a worker computes is put between ``enter`` and ``leave``.
Setting it counts as writing all memory (LLVM's own intrinsic for MXCSR does not): what is computed
from values loaded after ``enter``, or stored before ``leave``, is computed in between.
"""

from __future__ import annotations

import platform

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.vector import I32, I64, row_intrinsic

binding.initialize_native_asmparser()  # Numba itself has no use for one

VOID = ir.VoidType()
AARCH64 = ("aarch64", "arm64")
_MACHINE = platform.machine().lower()
# To nearest, nothing flushed, no trap. MXCSR of x86 masks all traps; FPCR of ARM enables none.
CONTRACT = 0x1F80 if _MACHINE in ("x86_64", "amd64") else 0


def read_mxcsr(b):
    slot = cgutils.alloca_once(b, I32)
    kind = ir.FunctionType(VOID, [slot.type])
    b.asm(kind, "stmxcsr ($0)", "r,~{memory}", [slot], side_effect=True)
    return b.zext(b.load(slot), I64)


def write_mxcsr(b, word):
    slot = cgutils.alloca_once(b, I32)
    b.store(b.trunc(word, I32), slot)
    kind = ir.FunctionType(VOID, [slot.type])
    b.asm(kind, "ldmxcsr ($0)", "r,~{memory}", [slot], side_effect=True)


def read_fpcr(b):
    return _call(b, "llvm.aarch64.get.fpcr", I64)


def write_fpcr(b, word):
    _call(b, "llvm.aarch64.set.fpcr", VOID, word)


def _call(b, name, returns, *args):
    kind = ir.FunctionType(returns, [one.type for one in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def _read(b):
    if _MACHINE in AARCH64:
        return read_fpcr(b)
    return read_mxcsr(b) if CONTRACT else ir.Constant(I64, 0)


def _write(b, word):
    if _MACHINE in AARCH64:
        write_fpcr(b, word)
    elif CONTRACT:
        write_mxcsr(b, word)


_read_word = row_intrinsic(types.int64, [], _read)
_write_word = row_intrinsic(types.void, [types.int64], _write)


@kernel
def control_word():
    """Return the calling thread's word."""
    return _read_word()


@kernel
def enter():
    """Compute by the contract from here on and return the word for ``leave``."""
    before = _read_word()
    _write_word(CONTRACT)
    return before


@kernel
def leave(before):
    """Give the calling thread the word back that ``enter`` found."""
    _write_word(before)
