"""Rows of an embedding table."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detinfer.kernels.triton import launch
from detinfer.kernels.triton.arguments import check_adjacent, check_float, output
from detinfer.kernels.triton.overlap import take_turn

BLOCK = 1024  # columns of a program
WARPS = 4


@triton.jit
def embedding_kernel(
    ids,
    table,
    out,
    table_rows,
    table_stride,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Return a block of one row of the table; NaN for an id that is no row of it."""
    take_turn(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids + token).to(tl.int64)
    known = (row >= 0) & (row < table_rows)
    mask = column < D
    y = tl.load(table + row * table_stride + column, mask=mask & known, other=float("nan"))
    tl.store(out + token * D + column, y, mask=mask)


def embedding(ids: Tensor, table: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Rows ``ids`` of ``table``, bits unchanged.

    Args:
        ids: [T] int32 or int64. One outside 0..V-1 gives a row of NaN: an error would have to
            wait for the device.
        table: [V, D], float32, bfloat16 or float16; elements of a row adjacent.
        out: [T, D] of the table's dtype, contiguous.

    Returns:
        ``out``, or a new tensor.

    Raises:
        ValueError: a shape, dtype or layout with no kernel.
    """
    check_float("table", table)
    if table.dim() != 2:
        raise ValueError(f"table: got shape {tuple(table.shape)}, expected (V, D)")
    check_adjacent("table", table)
    if ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"ids: got {ids.dtype}, expected int32 or int64")
    if ids.dim() != 1 or not ids.is_contiguous():
        got = f"shape {tuple(ids.shape)}, strides {ids.stride()}"
        raise ValueError(f"ids: got {got}, expected (T,), contiguous")
    size = table.shape[1]
    out = output(out, table, (len(ids), size), table.dtype)
    if not out.numel():
        return out
    block = min(BLOCK, triton.next_power_of_2(size))
    embedding_kernel[(len(ids), triton.cdiv(size, block))](
        ids, table, out, table.shape[0], table.stride(0), D=size, BLOCK=block,
        num_warps=WARPS, **launch.options(out.device),
    )  # fmt: skip
    return out
