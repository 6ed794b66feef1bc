"""Philox 4x32-10 (docs/arithmetic.md, rules 7 and 9b), and words of many tokens at once.

After Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils

from detinfer.kernels import constants as c
from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.vector import ADDRESS, I64, Emit, map_row, row_intrinsic

ROUNDS = 10
WORD = 0xFFFFFFFF


def _rounds(e: Emit, counter, key):
    """Return four words of a counter and a key of words, all held in 64-bit integers."""
    b, word, half = e.b, e.int64(WORD), e.int64(32)
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(ROUNDS):
        p0, p1 = b.mul(e.int64(c.PHILOX_M0), c0), b.mul(e.int64(c.PHILOX_M1), c2)
        c0 = b.xor(b.xor(b.lshr(p1, half), c1), k0)
        c2 = b.xor(b.xor(b.lshr(p0, half), c3), k1)
        c1, c3 = b.and_(p1, word), b.and_(p0, word)
        k0 = b.and_(b.add(k0, e.int64(c.PHILOX_W0)), word)
        k1 = b.and_(b.add(k1, e.int64(c.PHILOX_W1)), word)
    return c0, c1, c2, c3


def _four(b, c0, c1, c2, c3, k0, k1):
    return cgutils.pack_array(b, _rounds(Emit(b, 1), (c0, c1, c2, c3), (k0, k1)))


def _words(b, tokens, n, seed, position, out) -> None:
    """Write the words of ``n`` tokens [n] int64 to ``out`` [n] uint32."""

    def body(e: Emit, i) -> None:
        def halves(number):
            parts = b.and_(number, ir.Constant(I64, WORD)), b.lshr(number, ir.Constant(I64, 32))
            return [e.splat(part) for part in parts]

        token = e.load_integers(b.add(tokens, b.mul(i, ir.Constant(I64, 8))), I64)
        counter = [b.lshr(token, e.int64(2)), *halves(position), e.int64(0)]
        words = _rounds(e, counter, halves(seed))
        upper = b.icmp_unsigned("!=", b.and_(token, e.int64(2)), e.int64(0))
        odd = b.icmp_unsigned("!=", b.and_(token, e.int64(1)), e.int64(0))
        even_word, odd_word = (
            b.select(upper, words[2], words[0]),
            b.select(upper, words[3], words[1]),
        )
        e.store(b.trunc(b.select(odd, odd_word, even_word), e.i32), out, i)

    map_row(b, n, body)


_philox = row_intrinsic(types.UniTuple(types.uint64, 4), [types.uint64] * 6, _four)
_fill = row_intrinsic(types.void, [ADDRESS, ADDRESS, types.uint64, types.uint64, ADDRESS], _words)


@kernel
def philox(c0, c1, c2, c3, k0, k1):
    """Philox 4x32-10 on words held in uint64."""
    return _philox(c0, c1, c2, c3, k0, k1)


@kernel
def fill_words(tokens, seed, position, words):
    """Write what the noise of tokens at an absolute position is made of, a word each.

    Args:
        tokens: their ids. [K] int64
        words: written. [K] uint32
    """
    _fill(tokens.ctypes.data, len(tokens), seed, position, words.ctypes.data)
