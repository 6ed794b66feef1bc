"""The tile behind a packed linear: up to six quantised rows x 64 columns (rule 1q).

A block's integers are summed in registers, then folded into the chains of binary32, which lie in
memory. Which tile computes a row cannot matter to its chain.
"""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils

from detinfer.kernels.cpu.packed.block import Block, caller, pointer_to
from detinfer.kernels.cpu.packed.dot import COLUMNS, dot_product
from detinfer.kernels.cpu.packed.format import FORMATS, PANEL, Format
from detinfer.kernels.cpu.packed.rows import DX, RECORD, SCALED_SUM, SUMS, TILE_ROWS
from detinfer.kernels.cpu.vector import ADDRESS, F32, I32, Emit, const64, row_intrinsic

VECTORS = PANEL // COLUMNS
LINE = 64  # bytes of a cache line
PART = TILE_ROWS * PANEL * 4  # bytes of a segment's sums
# Blocks by which the weights are asked for ahead. Past one row too few instructions are in flight
# to reach the next block, and the CPU's own prefetching does not see the pattern: from memory a
# tile of six rows is three times as fast with it.
AHEAD = 4


def _masked(e: Emit, word, left: int, mask: int):
    """Bits of each byte, moved left."""
    if left:
        shift, count = (e.b.shl, left) if left > 0 else (e.b.lshr, -left)
        word = shift(word, e.int32(count))
    return e.b.and_(word, e.int32(mask * 0x01010101))


def _operands(block: Block):
    """Yield (number, u) of the eight operands, each four k of COLUMNS columns."""
    e, bits = block.e, block.form.bits
    if bits == 8:
        for o in range(8):
            yield o, block.word(o)
        return
    more = [block.word(4 + i) for i in range((0, 1, 2)[bits - 4])]
    for g in range(4):
        word = block.word(g)
        for o, left in ((g, 0), (4 + g, -4)):
            u = _masked(e, word, left, 15)
            if bits == 5:
                u = e.b.or_(u, _masked(e, more[0], 4 - o, 16))
            elif bits == 6:
                u = e.b.or_(u, _masked(e, more[o // 4], 4 - 2 * g, 48))
            yield o, u


class Rows:
    """Emits the parts of the rows' records of one group."""

    def __init__(self, b, record) -> None:
        self.b, self.record = b, record

    def word(self, r, offset, kind=I32):
        address = self.b.add(self.record, const64(r * RECORD + offset))
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=4)

    def spread(self, r, offset, kind=I32):
        return Emit(self.b, COLUMNS).splat(self.word(r, offset, kind))


def _integers(b, form: Format, blocks, rows, records):
    """Emit each row's and vector's integers, one a group: {(row, vector): [integer, …]}."""
    dot, groups = dot_product(b, form.bits), 32 // form.group
    # Of few sums none is ready for its next operand in time: more, added in the end.
    chains = 2 if groups == 2 or rows * len(blocks) < 8 else 1
    sums = {}
    for r in range(rows):
        for chain in range(chains):
            start = ir.Constant(I32, 0)
            if form.z and not dot.signed:
                start = records.word(r, SUMS + 4 * chain)
                if chains == 1:
                    start = b.add(start, records.word(r, SUMS + 4))
                start = b.mul(start, ir.Constant(I32, form.z))
            for v in range(len(blocks)):
                sums[r, v, chain] = dot.start(Emit(b, COLUMNS).splat(start))
    for operands in zip(*map(_operands, blocks), strict=True):
        for r in range(rows):
            q = records.spread(r, 4 * operands[0][0])
            for v, (o, u) in enumerate(operands):
                cell = (r, v, o // 4 % chains)
                sums[cell] = dot.add(sums[cell], u, q)
    made = {}
    for r in range(rows):
        for v in range(len(blocks)):
            parts = [dot.finish(sums[r, v, chain]) for chain in range(chains)]
            made[r, v] = parts if groups == chains else [b.add(*parts)]
    return made


def _fold(b, form: Format, block: Block, v, rows, records, integers, out) -> None:
    """Emit the chains' steps of a vector of columns."""
    e = Emit(b, COLUMNS)
    scales = [block.scale(part) for part in range(32 // form.group)]
    offset = block.offset() if form.offset else None
    for r in range(rows):
        at = b.add(block.column, const64(r * PANEL))
        chain = e.load(out, at)
        for scale, integer in zip(scales, integers[r, v], strict=True):
            factor = e.mul(scale, records.spread(r, DX, F32))
            chain = e.fma(b.sitofp(integer, e.f32), factor, chain)
        if offset is not None:
            chain = e.fma(offset, records.spread(r, SCALED_SUM, F32), chain)
        e.store(chain, out, at)


def _prefetch(b, form: Format, rows, block, part, parts: int) -> None:
    """Ask for one of so many parts of the block that is AHEAD of the one at ``block``.

    Where there is one row no other tile reads the panel, and what else a step reads stays cached.
    """
    lines = -(-form.block // (LINE * parts))
    start = b.add(block, b.mul(part, const64(lines * LINE)))
    for line in range(lines):
        Emit(b).prefetch(b.add(start, const64(AHEAD * form.block + line * LINE)), rows == 1)


def _segment(b, form: Format, rows, x, w, first, count, out) -> None:
    """Emit chains over ``count`` blocks from ``first`` on, started from +0."""
    e = Emit(b, COLUMNS)
    # Vectors whose integers are summed at once: those of six rows, and of one group, fit registers.
    together = 2 if COLUMNS == 16 and form.group == 32 else 1
    for i in range(rows * VECTORS):
        e.store(e.const(0.0), out, const64(i * COLUMNS))
    with cgutils.for_range(b, count) as loop:
        number = b.add(first, loop.index)
        records = Rows(b, b.add(x, b.mul(number, const64(rows * RECORD))))
        with cgutils.for_range(b, const64(VECTORS // together)) as part:
            column = b.mul(part.index, const64(together * COLUMNS))
            columns = [b.add(column, const64(v * COLUMNS)) for v in range(together)]
            blocks = [Block(b, form, w, number, column, COLUMNS) for column in columns]
            _prefetch(b, form, rows, blocks[0].at, part.index, VECTORS // together)
            integers = _integers(b, form, blocks, rows, records)
            for v, block in enumerate(blocks):
                _fold(b, form, block, v, rows, records, integers, out)


def _add_tree(b, parts, segments, rows) -> None:
    """Emit parts[0] = the balanced adjacent tree over parts[:segments]."""
    e = Emit(b, COLUMNS)
    for count in (2, 4, 8):
        same = b.icmp_signed("==", segments, const64(count))
        with b.if_then(same), cgutils.for_range(b, const64(rows * VECTORS)) as loop:
            at = b.mul(loop.index, const64(COLUMNS))
            sums = [e.load(b.add(parts, const64(s * PART)), at) for s in range(count)]
            while len(sums) > 1:
                sums = [e.add(low, high) for low, high in zip(sums[::2], sums[1::2], strict=True)]
            e.store(sums[0], parts, at)


def make_tile(form: Format):
    """Make ``tile(m, x, w, blocks, segments, parts)``.

    The finished sums of a whole tile of quantised rows, at ``x``, times the panel at ``w``.
    parts [8, PART bytes]: scratch, and the sums in front. [m, 64]
    """

    def emit(b, m, x, w, blocks, segments, parts):
        count = b.udiv(blocks, segments)
        for rows in range(1, TILE_ROWS + 1):
            with b.if_then(b.icmp_signed("==", m, const64(rows))):
                with cgutils.for_range(b, segments) as loop:
                    out = b.add(parts, b.mul(loop.index, const64(PART)))
                    _segment(b, form, rows, x, w, b.mul(loop.index, count), count, out)
                _add_tree(b, parts, segments, rows)
        return const64(0)

    return row_intrinsic(types.int64, [ADDRESS] * 6, emit)


@functools.cache
def tile_pointer(storage: str) -> int:
    """Address of a format's tile, compiled when it is first asked for."""
    tile = make_tile(FORMATS[storage])

    def packed_tile(m, x, w, blocks, segments, parts):
        return tile(m, x, w, blocks, segments, parts)

    return pointer_to(packed_tile, storage)


call_tile = caller(6)
