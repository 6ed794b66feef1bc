"""RMS norm, with or without the residual addition before it, and layer norm (rule 2 with N2).

A program owns whole rows and walks each twice or three times: a row fits a cache, so only the
first walk reaches memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from detinfer.kernels.triton import launch
from detinfer.kernels.triton.arguments import check_adjacent, check_vector, output
from detinfer.kernels.triton.arguments import rows as as_rows
from detinfer.kernels.triton.numeric import VARIANTS, adjacent_sum, lanes_of, rms_scaled
from detinfer.kernels.triton.overlap import take_turn

# Rows from which a row gets one warp and no barrier; below, more warps make each row quicker.
MANY_ROWS = 512
MANY_TILE = 1024  # elements of the tile one warp holds then


@triton.jit
def _load(x, row, columns, mask):
    """Return a tile of rows, widened. row [ROWS], columns [LANES] -> [ROWS, LANES]"""
    return tl.load(x + (row[:, None] + columns[None, :]), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _vector(w, columns, D: tl.constexpr):
    """Return a tile of a weight or bias, widened, as one row."""
    return tl.load(w + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _added(x, residual, x_row, residual_row, columns, mask, ADD: tl.constexpr):
    """Return a tile of x, or of x + residual rounded to x's dtype. [ROWS, LANES]"""
    v = _load(x, x_row, columns, mask)
    if ADD:
        v += _load(residual, residual_row, columns, mask)
        v = v.to(x.dtype.element_ty).to(tl.float32)
    return v


@triton.jit(do_not_specialize=["rows"])  # no compilation for another batch size
def rms_norm_kernel(
    x, weight, residual, out, rows, inner, x_outer, x_inner, residual_stride, eps,
    D: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, VARIANT: tl.constexpr,
    ADD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Rows of x, or of residual = x + residual. Row i begins at (i / inner, i % inner) of x."""
    take_turn(OVERLAP)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row[:, None] < rows
    x_row = row // inner * x_outer + row % inner * x_inner
    residual_row = row * residual_stride
    lane = tl.arange(0, LANES)

    lanes = tl.zeros((ROWS, LANES), tl.float32)
    for start in tl.range(0, D, LANES, loop_unroll_factor=4):
        mask = live & (start + lane < D)[None, :]
        v = _added(x, residual, x_row, residual_row, start + lane, mask, ADD)
        lanes = tl.fma(v, v, lanes)
    mean = tl.math.div_rn(adjacent_sum(lanes, ROWS, LANES), D * 1.0)
    r = tl.math.div_rn(1.0, tl.math.sqrt_rn(mean + eps))[:, None]

    if ADD:
        tl.debug_barrier()  # no thread may replace what another still reads
    for start in tl.range(0, D, LANES, loop_unroll_factor=4):
        columns = start + lane
        mask = live & (columns < D)[None, :]
        v = _added(x, residual, x_row, residual_row, columns, mask, ADD)
        if ADD:
            place = residual + (residual_row[:, None] + columns[None, :])
            tl.store(place, v.to(x.dtype.element_ty), mask=mask)
        w = 1.0 if VARIANT == "unscaled" else _vector(weight, columns, D)
        y = rms_scaled(v, r, w, VARIANT, x.dtype.element_ty)
        tl.store(out + (row[:, None] * D + columns[None, :]), y, mask=mask)


@triton.jit(do_not_specialize=["rows"])  # no compilation for another batch size
def layer_norm_kernel(
    x, weight, bias, out, rows, inner, x_outer, x_inner, eps,
    D: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Rows of x; row i begins at (i / inner, i % inner)."""
    take_turn(OVERLAP)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row[:, None] < rows
    x_row = row // inner * x_outer + row % inner * x_inner
    lane = tl.arange(0, LANES)

    lanes = tl.zeros((ROWS, LANES), tl.float32)
    for start in tl.range(0, D, LANES, loop_unroll_factor=4):
        mask = live & (start + lane < D)[None, :]
        lanes += _load(x, x_row, start + lane, mask)
    mean = tl.math.div_rn(adjacent_sum(lanes, ROWS, LANES), D * 1.0)[:, None]

    lanes = tl.zeros((ROWS, LANES), tl.float32)
    for start in tl.range(0, D, LANES, loop_unroll_factor=4):
        mask = live & (start + lane < D)[None, :]
        d = tl.where(mask, _load(x, x_row, start + lane, mask) - mean, 0.0)
        lanes = tl.fma(d, d, lanes)
    variance = tl.math.div_rn(adjacent_sum(lanes, ROWS, LANES), D * 1.0)
    r = tl.math.div_rn(1.0, tl.math.sqrt_rn(variance + eps))[:, None]

    for start in tl.range(0, D, LANES, loop_unroll_factor=4):
        columns = start + lane
        mask = live & (columns < D)[None, :]
        y = (_load(x, x_row, columns, mask) - mean) * r
        if WEIGHT:
            y *= _vector(weight, columns, D)
        if BIAS:
            y += _vector(bias, columns, D)
        place = out + (row[:, None] * D + columns[None, :])
        tl.store(place, y.to(x.dtype.element_ty), mask=mask)


def configuration(size: int, rows: int) -> tuple[int, int]:
    """Rows of a program and its warps. Free: neither changes a bit."""
    lanes = lanes_of(size)
    if rows < MANY_ROWS:
        return 1, max(1, min(4, lanes // 256))
    return max(1, MANY_TILE // lanes), 1


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    variant: str,
    *,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """RMS norm over the last dimension (rule 2, N2), after adding a residual if there is one.

    A row's bits depend on nothing but the row and the weight.

    Args:
        x: [..., D], float32, bfloat16 or float16; elements of a row adjacent, rows anywhere: the
            heads of a fused projection are a view [T, H, D].
        weight: [D] of any float dtype, or None for no scaling.
        variant: where the model family rounds: ``scale_rounded`` (llama), ``round_scaled``
            (olmo2) or ``one_plus`` (gemma).
        residual: [R, D] in x's dtype, beside an x [R, D]. It becomes ``residual + x``, rounded,
            in place, and the norm is of that.
        out: contiguous, x's shape and dtype, sharing no memory with x.

    Returns:
        ``out``, or a new tensor.

    Raises:
        ValueError: a shape, dtype, layout or variant with no kernel.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: got {variant!r}, expected one of {', '.join(VARIANTS)}")
    out = output(out, x, x.shape, x.dtype)
    x, rows, inner, x_outer, x_inner = as_rows("x", x)
    size = x.shape[-1]
    check_vector("weight", weight, size)
    residual_stride = 0
    if residual is not None:
        if residual.shape != x.shape or x.dim() != 2 or residual.dtype != x.dtype:
            raise ValueError(
                f"residual: got {residual.dtype} {tuple(residual.shape)}, "
                f"expected x's, 2-dimensional: {x.dtype} {tuple(x.shape)}"
            )
        check_adjacent("residual", residual)
        residual_stride = residual.stride(0)
    if not out.numel():
        return out
    block, warps = configuration(size, rows)
    rms_norm_kernel[(triton.cdiv(rows, block),)](
        x, weight, residual, out, rows, inner, x_outer, x_inner, residual_stride, eps,
        D=size, LANES=lanes_of(size), ROWS=block,
        VARIANT="unscaled" if weight is None else variant, ADD=residual is not None,
        num_warps=warps, **launch.options(out.device),
    )  # fmt: skip
    return out


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Layer norm over the last dimension (rule 2, N2).

    A row's bits depend on nothing but the row, the weight and the bias.

    Args:
        x: as for ``rms_norm``.
        weight: [D] of any float dtype, or None.
        bias: [D] of any float dtype, or None.
        out: contiguous, x's shape and dtype, sharing no memory with x.

    Returns:
        ``out``, or a new tensor.

    Raises:
        ValueError: a shape, dtype or layout with no kernel.
    """
    out = output(out, x, x.shape, x.dtype)
    x, rows, inner, x_outer, x_inner = as_rows("x", x)
    size = x.shape[-1]
    check_vector("weight", weight, size)
    check_vector("bias", bias, size)
    if not out.numel():
        return out
    block, warps = configuration(size, rows)
    layer_norm_kernel[(triton.cdiv(rows, block),)](
        x, weight, bias, out, rows, inner, x_outer, x_inner, eps,
        D=size, LANES=lanes_of(size), ROWS=block, WEIGHT=weight is not None,
        BIAS=bias is not None, num_warps=warps, **launch.options(out.device),
    )  # fmt: skip
    return out
