"""The two kernels of ``linear``: loads through pointers anywhere, by TMA from Hopper on.

Both keep rule N1 of docs/arithmetic.md: one accumulator a result, ascending k, zeros up to a
multiple of 128. ``SWAP`` gives the weights the MMA's M side and the tokens its N side.
"""

from __future__ import annotations

import triton
import triton.language as tl

from detinfer.kernels.triton import matmul_table
from detinfer.kernels.triton.overlap import let_next_start

_K_PAD = tl.constexpr(matmul_table.K_PAD)
# Row tiles that neighbouring programs share a weight tile over, where there are many: the tiles
# of 8 x 16 programs running at once then fit in L2.
_GROUP = tl.constexpr(8)


@triton.jit
def _steps(k, BLOCK_K: tl.constexpr):
    """Pass of the k loop: zeros up to the padded K included."""
    steps = tl.cdiv(k, _K_PAD) * (_K_PAD // BLOCK_K)
    tl.assume(steps > 0)  # or a flattened loop keeps a second epilogue for none
    return steps


@triton.jit
def _grouped(tile, tiles_m, tiles_n):
    """(row tile, column tile) of a tile number, ``_GROUP`` row tiles together."""
    group = tile // (_GROUP * tiles_n)
    first = group * _GROUP
    height = min(tiles_m - first, _GROUP)
    inside = tile - group * _GROUP * tiles_n
    return first + inside % height, inside // height


@triton.jit
def _zeros(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWAP: tl.constexpr):
    """Return an empty accumulator: [BLOCK_M, BLOCK_N], or its transpose where sides are swapped."""
    if SWAP:
        return tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        return tl.zeros((BLOCK_M, BLOCK_N), tl.float32)


@triton.jit
def _dot(x, w, acc, SWAP: tl.constexpr):
    """One block's depth added to the accumulator. x [BLOCK_M, BLOCK_K], w [BLOCK_N, BLOCK_K]."""
    if SWAP:
        return tl.dot(w, x.T, acc, input_precision="ieee")
    else:
        return tl.dot(x, w.T, acc, input_precision="ieee")


@triton.jit
def _store(
    acc, bias, y, row, col, m, n, y_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """Write the tile of y that starts at (row, col)."""
    if BLOCK_N == 256 and not SWAP:
        # In halves: the whole tile would take 64 to 128 KB to change layout, or many registers.
        halves = acc.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1)
        left, right = halves.split()
        half: tl.constexpr = BLOCK_N // 2
        _store_part(left, bias, y, row, col, m, n, y_stride, BLOCK_M, half, SWAP)
        _store_part(right, bias, y, row, col + half, m, n, y_stride, BLOCK_M, half, SWAP)
    else:
        _store_part(acc, bias, y, row, col, m, n, y_stride, BLOCK_M, BLOCK_N, SWAP)


@triton.jit
def _store_part(
    acc, bias, y, row, col, m, n, y_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """Add the bias, round once and write."""
    rows, cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    if SWAP:
        rows, cols = rows[None, :], cols[:, None]
    else:
        rows, cols = rows[:, None], cols[None, :]
    if bias is not None:
        acc += tl.load(bias + cols, mask=cols < n, other=0.0).to(tl.float32)
    at = y + rows.to(tl.int64) * y_stride + cols
    tl.store(at, acc.to(y.dtype.element_ty), mask=(rows < m) & (cols < n))


@triton.jit(do_not_specialize=["m"])
def linear_pointers(
    x, w, bias, y, m, n, k, x_stride, y_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_K: tl.constexpr, GROUPED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One tile of y, loaded through pointers; masks that cannot fail fold away."""
    let_next_start(OVERLAP)
    if GROUPED:
        tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
        tile_m, tile_n = _grouped(tl.program_id(0), tiles_m, tiles_n)
    else:
        tile_m, tile_n = tl.program_id(0), tl.program_id(1)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    x_at = x + rows.to(tl.int64)[:, None] * x_stride + depth[None, :]
    w_at = w + cols.to(tl.int64)[:, None] * k + depth[None, :]
    acc = _zeros(BLOCK_M, BLOCK_N, SWAP)
    for step in range(_steps(k, BLOCK_K)):
        inside = (depth[None, :] < k - step * BLOCK_K) | EVEN_K
        x_tile = tl.load(x_at, mask=(rows[:, None] < m) & inside, other=0.0)
        w_tile = tl.load(w_at, mask=((cols[:, None] < n) | EVEN_N) & inside, other=0.0)
        acc = _dot(x_tile, w_tile, acc, SWAP)
        x_at += BLOCK_K
        w_at += BLOCK_K
    _store(acc, bias, y, tile_m * BLOCK_M, tile_n * BLOCK_N, m, n, y_stride, BLOCK_M, BLOCK_N, SWAP)


@triton.jit
def _tma_tile(
    x, w, bias, y, m, n, k, y_stride, tile_m, tile_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """One tile of y; the descriptors give zeros outside x and w."""
    row, col = tile_m * BLOCK_M, tile_n * BLOCK_N
    acc = _zeros(BLOCK_M, BLOCK_N, SWAP)
    for step in range(_steps(k, BLOCK_K)):
        x_tile = x.load([row, step * BLOCK_K])
        w_tile = w.load([col, step * BLOCK_K])
        acc = _dot(x_tile, w_tile, acc, SWAP)
    _store(acc, bias, y, row, col, m, n, y_stride, BLOCK_M, BLOCK_N, SWAP)


@triton.jit(do_not_specialize=["m"])
def linear_tma(
    x, w, bias, y, m, n, k, y_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr,
    PERSISTENT: tl.constexpr, GROUPED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Tiles of y, loaded by TMA through host descriptors x [m, k] and w [n, k]."""
    let_next_start(OVERLAP)
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    if PERSISTENT:
        # Flattened, the next tile's loads run while this one is stored.
        for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
            tile_m, tile_n = _grouped(tile, tiles_m, tiles_n)
            _tma_tile(
                x, w, bias, y, m, n, k, y_stride, tile_m, tile_n, BLOCK_M, BLOCK_N, BLOCK_K, SWAP
            )
    else:
        if GROUPED:
            tile_m, tile_n = _grouped(tl.program_id(0), tiles_m, tiles_n)
        else:
            tile_m, tile_n = tl.program_id(0), tl.program_id(1)
        _tma_tile(x, w, bias, y, m, n, k, y_stride, tile_m, tile_n, BLOCK_M, BLOCK_N, BLOCK_K, SWAP)
