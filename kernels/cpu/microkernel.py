"""The one matrix tile behind linear and attention: m rows x sixteens of outputs, k ascending.

Each output element is one chain of fused multiply-adds that starts from a stored value, so a chain
may be cut anywhere and resumed. Rows go by six, those left over in one smaller tile, and columns by
as many as there are vector registers to accumulate in over the whole loop; which tile computes an
element cannot matter to its chain.
"""

from __future__ import annotations

from numba import types
from numba.core import cgutils

from detinfer.kernels.cpu.jit import FEATURES, kernel
from detinfer.kernels.cpu.vector import ADDRESS, I64, LANES, Emit, const64, row_intrinsic

LINE = 64  # bytes the caches hold together
# How a row of w holds its numbers. PAIRS: bf16, of 32 columns j and 16 + j side by side.
FLOATS, HALVES, PAIRS = range(3)
TILE_ROWS = 6
# Lanes of a register, and how many may accumulate: of the 32 that AVX-512 has, or of 16 without it.
REGISTER, ACCUMULATORS = (16, 24) if "avx512f" in FEATURES else (8, 12)


def _width(columns, numbers):
    """Bytes of so many columns of a row of w."""
    return columns * (4 if numbers == FLOATS else 2)


def _at_once(rows, columns):
    """Return the registers of columns, a power of two, that such rows have accumulators for."""
    count = columns // REGISTER
    while count > 1 and rows * count > ACCUMULATORS:
        count //= 2
    return count


def _places(b, vectors, numbers, block):
    """Return where each vector of a block lies among a row's numbers, and among the outputs."""
    places = [b.add(b.mul(block, const64(vectors * REGISTER)), const64(v * REGISTER))
              for v in range(vectors)]  # fmt: skip
    if numbers != PAIRS:
        return places, places
    # A load of pairs yields two vectors of outputs; narrow ones are a half of either sixteen.
    loads, outputs = places[::2], []
    for place in loads:
        half = b.and_(b.udiv(place, const64(2)), const64(LANES - REGISTER))
        outputs += [b.add(b.sub(place, half), const64(second)) for second in (0, LANES)]
    return loads, outputs


def _columns(e, numbers, w, places):
    """Load a row's vectors, widened."""
    if numbers == PAIRS:
        return [half for place in places for half in e.load_bf16_pairs(w, place)]
    load = e.load if numbers == FLOATS else e.load_bf16
    return [load(w, place) for place in places]


def _rows(
    b, rows, vectors, numbers, block, x, x_stride, w, w_stride, start, start_stride, out,
    out_stride, k, ahead, share, factors,
):  # fmt: skip
    """Emit a tile of a fixed size; a turn asks for the next ``share`` bytes ahead."""
    e, one = Emit(b, REGISTER), Emit(b, 1)
    cells = [(r, v) for r in range(rows) for v in range(vectors)]
    places, outputs = _places(b, vectors, numbers, block)

    def offset(stride, r, v):
        return b.add(b.mul(stride, const64(r)), outputs[v])

    first = [e.load(start, offset(start_stride, r, v)) for r, v in cells]
    if factors is not None:
        scales = [e.splat(one.load(factors, const64(r))) for r in range(rows)]
        first = [e.mul(value, scales[r]) for (r, _), value in zip(cells, first, strict=True)]
    entry = b.block
    loop = b.function.append_basic_block("k_loop")
    done = b.function.append_basic_block("k_done")
    b.cbranch(b.icmp_signed(">", k, const64(0)), loop, done)

    b.position_at_end(loop)
    i = b.phi(I64)
    i.add_incoming(const64(0), entry)
    sums = [b.phi(e.f32) for _ in cells]
    row = b.mul(i, w_stride)
    columns = _columns(e, numbers, w, [b.add(row, place) for place in places])
    scalars = [one.load(x, b.add(b.mul(x_stride, const64(r)), i)) for r in range(rows)]
    spread = [e.splat(value) for value in scalars]
    new = [e.fma(spread[r], columns[v], s) for (r, v), s in zip(cells, sums, strict=True)]
    for phi, before, after in zip(sums, first, new, strict=True):
        phi.add_incoming(before, entry)
        phi.add_incoming(after, loop)
    if ahead is not None:
        line = b.add(ahead, b.mul(i, share))
        for at in range(0, _width(vectors * REGISTER, numbers), LINE):
            e.prefetch(b.add(line, const64(at)))
    following = b.add(i, const64(1))
    i.add_incoming(following, loop)
    b.cbranch(b.icmp_signed("<", following, k), loop, done)

    b.position_at_end(done)
    results = [b.phi(e.f32) for _ in cells]
    for (r, v), value, before, after in zip(cells, results, first, new, strict=True):
        value.add_incoming(before, entry)
        value.add_incoming(after, loop)
        e.store(value, out, offset(out_stride, r, v))


def make_tile(sixteens: int, numbers: int | None, ahead: bool = False, scaled: bool = False):
    """Make ``tile(m, x, x_stride, w, w_stride, start, start_stride, out, out_stride, k)``.

    ``out[r, j] = start[r, j]; for i < k: out[r, j] = fma(x[r, i], w[i, j], out[r, j])``. Addresses
    are in bytes, strides in elements; x is binary32.

    Args:
        sixteens: of columns.
        numbers: how w holds them; with None one more argument tells, the bytes of one: FLOATS have
            4, HALVES 2.
        ahead: with one more argument, the address of k rows of as many columns, contiguous, that
            are read next: the caches are asked for them meanwhile, by each tile of rows for as
            many, so that memory is read all the time.
        scaled: with another, the address of a factor for each row's start. [m]
    """
    columns = sixteens * LANES

    def emit(b, m, x, x_stride, w, w_stride, start, start_stride, out, out_stride, k, *more):
        following = more[told] if ahead else None
        factors = more[-1] if scaled else None
        whole, left = b.sdiv(m, const64(TILE_ROWS)), b.srem(m, const64(TILE_ROWS))

        def tiles(numbers):
            count = b.add(whole, b.zext(b.icmp_signed(">", left, const64(0)), I64))
            share = b.sdiv(const64(_width(columns, numbers)), count) if ahead else None

            def tile(rows, index):
                row, together = b.mul(index, const64(TILE_ROWS)), _at_once(rows, columns)

                def at(base, stride):
                    return b.add(base, b.mul(b.mul(row, stride), const64(4)))

                blocks = const64(columns // REGISTER // together)
                with cgutils.for_range(b, blocks) as loop:
                    part = b.sdiv(share, blocks) if ahead else None
                    turn = b.add(b.mul(index, blocks), loop.index)
                    _rows(
                        b, rows, together, numbers, loop.index, at(x, x_stride), x_stride, w,
                        w_stride, at(start, start_stride), start_stride, at(out, out_stride),
                        out_stride, k,
                        b.add(following, b.mul(turn, b.mul(part, k))) if ahead else None, part,
                        at(factors, const64(1)) if scaled else None,
                    )  # fmt: skip

            with cgutils.for_range(b, whole) as loop:
                tile(TILE_ROWS, loop.index)
            for rows in range(1, TILE_ROWS):
                with b.if_then(b.icmp_signed("==", left, const64(rows))):
                    tile(rows, whole)

        if numbers is not None:
            tiles(numbers)
            return
        with b.if_else(b.icmp_signed("==", more[0], const64(2))) as (half, full):
            with half:
                tiles(HALVES)
            with full:
                tiles(FLOATS)

    told = numbers is None
    return row_intrinsic(types.void, [ADDRESS] * (10 + told + ahead + scaled), emit)


_f32, _bf16 = (make_tile(4, numbers, ahead=True) for numbers in (FLOATS, PAIRS))


@kernel
def tile_f32(m, x, x_stride, w, w_stride, start, start_stride, out, out_stride, k, ahead):
    """``m`` rows x 64 columns, binary32 weights; see ``make_tile``."""
    _f32(m, x, x_stride, w, w_stride, start, start_stride, out, out_stride, k, ahead)


@kernel
def tile_bf16(m, x, x_stride, w, w_stride, start, start_stride, out, out_stride, k, ahead):
    """``m`` rows x 64 columns, bf16 weights in pairs; see ``make_tile``."""
    _bf16(m, x, x_stride, w, w_stride, start, start_stride, out, out_stride, k, ahead)
