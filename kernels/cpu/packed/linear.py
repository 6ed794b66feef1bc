"""Linear and embedding over a weight kept in its GGUF blocks (docs/arithmetic.md, rule 1q).

A step's rows are quantised once; then (panel, row block) items are dealt out, as rule 1's are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import prange

from detinfer.kernels.constants import BLOCK_FORMATS
from detinfer.kernels.cpu.finish import write_rows
from detinfer.kernels.cpu.jit import kernel, numba, parallel_kernel
from detinfer.kernels.cpu.matmul import row_blocks, segments
from detinfer.kernels.cpu.packed.embedding import embedding, row_pointer
from detinfer.kernels.cpu.packed.format import PANEL, to_panels
from detinfer.kernels.cpu.packed.rows import TILE_ROWS, quantise_row, quantised_bytes, tile_offset
from detinfer.kernels.cpu.packed.tile import PART, call_tile, tile_pointer
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.team import REGION, done_take, end_of, regions, take, wait

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class PackedBlocks:
    """A weight [n, k] in the kernels' own order of its blocks, about as large as in its file.

    Attributes:
        n: output features (rows of the table, for an embedding).
        k: input features.
        storage: the format's name, as ``Q4_1``.
        panels: the blocks. [ceil(n / 64), bytes of a panel]
        nbytes: memory it takes.
        address, panel_bytes, tile, row: where kernels find it, and its format's code.
    """

    def __init__(self, panels: Bytes, storage: str, n: int, k: int) -> None:
        self.panels, self.storage, self.n, self.k = panels, storage, n, k
        self.nbytes, self.address = panels.nbytes, panels.ctypes.data
        self.panel_bytes = panels.shape[1]
        self.tile, self.row = tile_pointer(storage), row_pointer(storage)

    def linear(self, rows: Array, bias: Array | None, out: Array) -> None:
        """``out = rows @ weight.T + bias``. rows [M, k], bias [n], out [M, n], contiguous."""
        added = 0 if bias is None else bias.ctypes.data
        quantised = np.empty(rows.shape[0] * quantised_bytes(self.k), np.uint8)
        linear(numba.get_num_threads(), rows, quantised, self.address, self.panel_bytes,
               self.tile, self.n, added, out)  # fmt: skip

    def rows(self, ids: npt.NDArray[np.int64], out: Array) -> None:
        """``out[t] = weight[ids[t]]``, dequantised. ids [T], out [T, k], contiguous."""
        embedding(self.row, ids, self.k, self.address, self.panel_bytes, out)


def pack(raw: Bytes, storage: str, n: int, k: int) -> PackedBlocks:
    """Pack a weight [n, k] from the bytes of its rows; nothing of ``raw`` is kept.

    Args:
        raw: a GGUF tensor's bytes. [n, bytes of a row]
        storage: one of ``BLOCK_FORMATS``.
        n: rows.
        k: values of a row, a multiple of the format's block.

    Raises:
        ValueError: sizes that do not fit one another, or a scale that is NaN or infinite.
    """
    if storage not in BLOCK_FORMATS:
        raise ValueError(f"storage: got {storage!r}, expected one of {', '.join(BLOCK_FORMATS)}")
    values, size = BLOCK_FORMATS[storage]
    if k % values:
        raise ValueError(f"k: got {k}, expected a multiple of {storage}'s block of {values}")
    if raw.dtype != np.uint8 or raw.shape != (n, k // values * size):
        raise ValueError(
            f"raw: got {raw.dtype}{raw.shape}, "
            f"expected uint8({n}, {k // values * size}) for {storage}"
        )
    return PackedBlocks(to_panels(raw, storage, k), storage, n, k)


@kernel
def block_rows(m):
    """Rows of a block as ``row_blocks`` has them: whole tiles."""
    blocks = row_blocks(m)
    share = (m + blocks - 1) // blocks
    return (share + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS


@kernel
def linear_item(item, x, m, k, w, size, tile, n, bias, out, parts):
    """One (panel, row block); addresses in bytes (bias may be 0), ``size`` a panel's bytes.

    ``parts`` is scratch of eight times PART bytes.
    """
    panel, start = item // row_blocks(m), item % row_blocks(m) * block_rows(m)
    stop, columns = min(m, start + block_rows(m)), min(PANEL, n - panel * PANEL)
    added = bias + panel * PANEL * 4 if bias else bias
    for row in range(start, stop, TILE_ROWS):
        rows, at = min(TILE_ROWS, stop - row), x + tile_offset(row // TILE_ROWS, k)
        call_tile(tile, rows, at, w + panel * size, k // 32, segments(k), parts)
        write_rows(rows, parts, columns, added, out + (row * n + panel * PANEL) * 4, n)


@parallel_kernel
def linear(threads, x, quantised, w, size, tile, n, bias, out):
    """``out[m, n] = x[m, k] @ w.T (+ bias)``; ``w``, ``tile`` and ``bias`` are addresses."""
    m, k = x.shape
    team = regions(2)
    x0, q0, out0 = x.ctypes.data, quantised.ctypes.data, out.ctypes.data
    items = (n + PANEL - 1) // PANEL * row_blocks(m)
    for thread in prange(threads):
        before = enter()
        region = team.ctypes.data + end_of(thread, threads)
        parts = np.empty(8 * PART // 4, np.float32)
        row = take(region, m)
        while row < m:
            quantise_row(x0 + row * k * 4, row, m, k, q0)
            row = done_take(region, m)
        wait(region, m)
        item = take(region + REGION, items)
        while item < items:
            linear_item(item, q0, m, k, w, size, tile, n, bias, out0, parts.ctypes.data)
            item = done_take(region + REGION, items)
        leave(before)
