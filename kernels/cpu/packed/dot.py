"""Four unsigned bytes times four signed ones, summed: one integer, four ways to it.

An operand is COLUMNS columns by four k, as 32-bit words; a row's four k stand in one word
that goes to all columns. |q| is at most 127. Sums of integers are exact, so the way is the CPU's
own (docs/arithmetic.md, rule 1q).
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from detinfer.kernels.cpu.jit import FEATURES
from detinfer.kernels.cpu.vector import I16, I32, Emit

I8 = ir.IntType(8)


# Columns that are multiplied at once: as many words as a register has, of 512 bits or 256.
COLUMNS = 16 if "avx512vnni" in FEATURES else 8
WORDS = ir.VectorType(I32, COLUMNS)


def _call(b, name, returns, *args):
    kind = ir.FunctionType(returns, [one.type for one in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


class Dpbusd:
    """AVX-512 VNNI, or AVX-VNNI."""

    signed = False

    def __init__(self, b, bits: int) -> None:
        self.b = b

    def start(self, start):
        return start

    def add(self, total, u, q):
        return _call(self.b, f"llvm.x86.avx512.vpdpbusd.{32 * COLUMNS}", WORDS, total, u, q)

    def finish(self, total):
        return total


class Pairs:
    """Products summed by twos in 16 bits, as many as cannot overflow, then widened.

    Subclasses say how. State: the start, sums of 32 bits, sums of 16 bits and how many are in them.
    """

    def __init__(self, b, bits: int) -> None:
        self.b, self.bits, self.signed = b, bits, False
        self.room = max(1, 32767 // (2 * 127 * (2**bits - 1)))

    def pairs(self, u, q):
        """Vectors of 16-bit sums of two products."""
        raise NotImplementedError

    def widened(self, pairs):
        """Their sums by words. of 32 bits"""
        raise NotImplementedError

    def start(self, start):
        return (start, None, 0)

    def add(self, state, u, q):
        total, pairs, count = state
        new = self.pairs(u, q)
        pairs = (
            new if pairs is None else [self.b.add(p, n) for p, n in zip(pairs, new, strict=True)]
        )
        if count + 1 < self.room:
            return (total, pairs, count + 1)
        return (self.b.add(total, self.widened(pairs)), None, 0)

    def finish(self, state):
        total, pairs, _ = state
        return total if pairs is None else self.b.add(total, self.widened(pairs))


class Maddubs(Pairs):
    """AVX2. u of 8 bits would saturate: as a signed number, its sign is moved to q."""

    def __init__(self, b, bits: int) -> None:
        super().__init__(b, bits)
        self.signed = bits == 8

    def pairs(self, u, q):
        b, bytes_ = self.b, ir.VectorType(I8, 4 * COLUMNS)
        u, q = b.bitcast(u, bytes_), b.bitcast(q, bytes_)
        if self.signed:
            signed = b.xor(u, ir.Constant(bytes_, [-128] * 4 * COLUMNS))
            q = _call(b, "llvm.x86.avx2.psign.b", bytes_, q, signed)
            u = _call(b, "llvm.abs.v32i8", bytes_, signed, ir.Constant(ir.IntType(1), 0))
        return [_call(b, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 2 * COLUMNS), u, q)]

    def widened(self, pairs):
        one = ir.Constant(pairs[0].type, [1] * 2 * COLUMNS)
        return _call(self.b, "llvm.x86.avx2.pmadd.wd", WORDS, pairs[0], one)


class Plain(Pairs):
    """Any CPU."""

    def pairs(self, u, q):
        b, kind = self.b, ir.VectorType(I16, 2 * COLUMNS)
        eight, low = (ir.Constant(kind, [value] * 2 * COLUMNS) for value in (8, 255))
        u, q = b.bitcast(u, kind), b.bitcast(q, kind)
        even = b.mul(b.and_(u, low), b.ashr(b.shl(q, eight), eight))
        odd = b.mul(b.lshr(u, eight), b.ashr(q, eight))
        return [even, odd] if self.bits == 8 else [b.add(even, odd)]

    def widened(self, pairs):
        b = self.b
        sixteen = Emit(b, COLUMNS).int32(16)
        words = [b.bitcast(p, WORDS) for p in pairs]
        parts = [b.ashr(b.shl(w, sixteen), sixteen) for w in words]
        parts += [b.ashr(w, sixteen) for w in words]
        total = parts[0]
        for part in parts[1:]:
            total = b.add(total, part)
        return total


def dot_product(b, bits: int):
    """Return what emits sums for u of so many bits, the best way that the CPU has.

    ``start(value)`` makes a state, ``add(state, u, q)`` the next, ``finish(state)`` the sum;
    ``signed`` says whether that is of u - 128, not of u.
    """
    if FEATURES & {"avx512vnni", "avxvnni"}:
        return Dpbusd(b, bits)
    return Maddubs(b, bits) if "avx2" in FEATURES else Plain(b, bits)
