"""The one matrix tile behind linear and attention: m rows x (16 * vectors) outputs, k ascending.

Each output element is one chain of fused multiply-adds that starts from a stored value, so a chain
may be cut anywhere and resumed. Rows go by six, those left over in one smaller tile, with
accumulators in vector registers over the whole loop; which tile computes a row cannot matter to its
chain.
"""

from __future__ import annotations

from numba import types
from numba.core import cgutils

from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.vector import ADDRESS, I64, LANES, Emit, const64, row_intrinsic

LINE = 64  # bytes the caches hold together
# How a row of w holds its numbers. PAIRS: bf16, of 32 columns j and 16 + j side by side.
FLOATS, HALVES, PAIRS = range(3)
TILE_ROWS = 6  # by four vectors: 24 accumulators of the 32 registers AVX-512 has


def _width(vectors, numbers):
    """Bytes of a row of w."""
    return vectors * LANES * (4 if numbers == FLOATS else 2)


def _columns(e, vectors, numbers, w, start):
    """Load a row's vectors, widened, from number ``start`` of w on."""
    step = 2 if numbers == PAIRS else 1
    at = [e.b.add(start, const64(v * LANES)) for v in range(0, vectors, step)]
    if numbers == PAIRS:
        return [half for place in at for half in e.load_bf16_pairs(w, place)]
    load = e.load if numbers == FLOATS else e.load_bf16
    return [load(w, place) for place in at]


def _rows(
    b, rows, vectors, numbers, x, x_stride, w, w_stride, start, start_stride, out, out_stride, k,
    ahead, share, factors,
):  # fmt: skip
    """Emit a tile of a fixed number of rows; a turn asks for the next ``share`` bytes ahead."""
    e, one = Emit(b), Emit(b, 1)
    cells = [(r, v) for r in range(rows) for v in range(vectors)]

    def offset(stride, r, v):
        return b.add(b.mul(stride, const64(r)), const64(v * LANES))

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
    columns = _columns(e, vectors, numbers, w, b.mul(i, w_stride))
    scalars = [one.load(x, b.add(b.mul(x_stride, const64(r)), i)) for r in range(rows)]
    spread = [e.splat(value) for value in scalars]
    new = [e.fma(spread[r], columns[v], s) for (r, v), s in zip(cells, sums, strict=True)]
    for phi, before, after in zip(sums, first, new, strict=True):
        phi.add_incoming(before, entry)
        phi.add_incoming(after, loop)
    if ahead is not None:
        line = b.add(ahead, b.mul(i, share))
        for at in range(0, _width(vectors, numbers), LINE):
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


def make_tile(vectors: int, numbers: int | None, ahead: bool = False, scaled: bool = False):
    """Make ``tile(m, x, x_stride, w, w_stride, start, start_stride, out, out_stride, k)``.

    ``out[r, j] = start[r, j]; for i < k: out[r, j] = fma(x[r, i], w[i, j], out[r, j])``. Addresses
    are in bytes, strides in elements; x is binary32.

    Args:
        vectors: sixteens of columns.
        numbers: how w holds them; with None one more argument tells, the bytes of one: FLOATS have
            4, HALVES 2.
        ahead: with one more argument, the address of k rows of as many columns, contiguous, that
            are read next: the caches are asked for them meanwhile, by each tile of rows for as
            many, so that memory is read all the time.
        scaled: with another, the address of a factor for each row's start. [m]
    """

    def emit(b, m, x, x_stride, w, w_stride, start, start_stride, out, out_stride, k, *more):
        following = more[told] if ahead else None
        factors = more[-1] if scaled else None
        whole, left = b.sdiv(m, const64(TILE_ROWS)), b.srem(m, const64(TILE_ROWS))

        def tiles(numbers):
            count = b.add(whole, b.zext(b.icmp_signed(">", left, const64(0)), I64))
            share = b.sdiv(const64(_width(vectors, numbers)), count) if ahead else None

            def tile(rows, index):
                row = b.mul(index, const64(TILE_ROWS))

                def at(base, stride):
                    return b.add(base, b.mul(b.mul(row, stride), const64(4)))

                _rows(
                    b, rows, vectors, numbers, at(x, x_stride), x_stride, w, w_stride,
                    at(start, start_stride), start_stride, at(out, out_stride), out_stride, k,
                    b.add(following, b.mul(index, b.mul(share, k))) if ahead else None, share,
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
