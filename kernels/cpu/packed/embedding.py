"""Rows of a packed weight as binary32 numbers (docs/arithmetic.md, rule 1q)."""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import prange, types
from numba.core import cgutils

from detinfer.kernels.cpu.jit import parallel_kernel
from detinfer.kernels.cpu.packed.block import I8, Block, caller, pointer_to
from detinfer.kernels.cpu.packed.format import FORMATS, PANEL, Format
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.vector import ADDRESS, I32, LANES, Emit, const64, row_intrinsic

FOUR = ir.VectorType(I32, 4)


def _four(b, words):
    vector = ir.Constant(FOUR, ir.Undefined)
    for i, word in enumerate(words):
        vector = b.insert_element(vector, word, ir.Constant(I32, i))
    return vector


def _bits(b, words, shifts, mask: int, left: int = 0):
    """Bits of each byte of four words, each moved right by its own number, then all left."""
    moved = b.lshr(words, ir.Constant(FOUR, shifts))
    kept = b.and_(moved, ir.Constant(FOUR, [mask * 0x01010101] * 4))
    return b.shl(kept, ir.Constant(FOUR, [left] * 4))


def _integers(b, block: Block, half: int):
    """U of the block's first or last sixteen k."""
    bits = block.form.bits
    if bits == 8:
        return _four(b, [block.word(4 * half + i) for i in range(4)])
    u = _bits(b, _four(b, [block.word(i) for i in range(4)]), [4 * half] * 4, 15)
    if bits == 5:
        shifts = [4 * half + i for i in range(4)]
        return b.or_(u, _bits(b, _four(b, [block.word(4)] * 4), shifts, 1, 4))
    if bits == 6:
        return b.or_(u, _bits(b, _four(b, [block.word(4 + half)] * 4), [0, 2, 4, 6], 3, 4))
    return u


def _row(b, form: Format, token, k, w, size, out):
    e = Emit(b)
    panel = b.add(w, b.mul(b.udiv(token, const64(PANEL)), size))
    column = b.urem(token, const64(PANEL))
    with cgutils.for_range(b, b.udiv(k, const64(32))) as loop:
        block = Block(b, form, panel, loop.index, column, lanes=1)
        # Adding -0 changes nothing, not even the sign of a zero.
        offset = e.splat(block.offset()) if form.offset else e.const(-0.0)
        for half in range(2):
            scale = e.splat(block.scale(half if form.group == 16 else 0))
            u = b.zext(b.bitcast(_integers(b, block, half), ir.VectorType(I8, LANES)), e.i32)
            value = b.sitofp(b.sub(u, e.int32(form.z)), e.f32)
            at = b.add(b.mul(loop.index, const64(32)), const64(half * LANES))
            e.store(e.fma(scale, value, offset), out, at)


@functools.cache
def row_pointer(storage: str) -> int:
    """Address of a format's ``row(token, k, w, size, out)``, compiled when it is first asked for.

    Write row ``token`` of the panels at ``w``, each of ``size`` bytes, to address ``out``. [k]
    """

    def emit(b, *args):
        _row(b, FORMATS[storage], *args)
        return const64(0)

    row = row_intrinsic(types.int64, [ADDRESS] * 5, emit)

    def packed_row(token, k, w, size, out):
        return row(token, k, w, size, out)

    return pointer_to(packed_row, storage)


call_row = caller(5)


@parallel_kernel
def embedding(row, ids, k, w, size, out):
    """``out[t] = weight[ids[t]]``; ``row`` is a format's ``row_pointer``."""
    out0 = out.ctypes.data
    for t in prange(ids.size):
        before = enter()
        call_row(row, ids[t], k, w, size, out0 + t * k * 4)
        leave(before)
