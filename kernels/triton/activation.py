"""Elementary functions of rule 4 over a tensor, and the gated products of an MLP."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from detinfer.kernels.triton import launch
from detinfer.kernels.triton.arguments import (
    check_adjacent,
    check_dtype,
    check_float,
    check_shape,
    output,
)
from detinfer.kernels.triton.numeric import NAMES, elementary
from detinfer.kernels.triton.overlap import take_turn

WARPS = 4
BLOCK = 2048  # elements of a program: two vectors of eight 16-bit values to a thread
SMALL_BLOCK = 512  # where the larger would leave most of the machine idle
FEW_ELEMENTS = 1 << 18


@triton.jit(do_not_specialize=["blocks"])  # no compilation for another batch size
def activation_kernel(
    x,
    out,
    width,
    blocks,
    x_stride,
    NAME: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Return the function of a block of a row of x."""
    take_turn(OVERLAP)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    v = tl.load(x + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, elementary(NAME, v).to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["blocks"])  # no compilation for another batch size
def gated_kernel(
    gate, up, out, width, blocks, gate_stride, up_stride,
    NAME: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """``function(gate) * up``, rounded after each, for a block of a row."""
    take_turn(OVERLAP)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    v = tl.load(gate + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=mask, other=0.0).to(tl.float32)
    activated = elementary(NAME, v).to(gate.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + column, (activated * u).to(gate.dtype.element_ty), mask=mask)


def block_of(elements: int) -> int:
    """Elements of a program. Free: it changes no bit."""
    return SMALL_BLOCK if elements <= FEW_ELEMENTS else BLOCK


def activation(name: str, x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return an elementary function of rule 4, elementwise, rounded once.

    Args:
        name: exp, log, tanh, erf, sigmoid, silu, softplus, gelu (erf) or gelu_tanh.
        x: [..., I], float32, bfloat16 or float16; elements of a row adjacent.
        out: contiguous, x's shape and dtype.

    Returns:
        ``out``, or a new tensor.

    Raises:
        ValueError: a name, dtype or layout with no kernel.
    """
    if name not in NAMES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(NAMES)}")
    out = output(out, x, x.shape, x.dtype)
    count, width, x_stride = _rows("x", x)
    if not out.numel():
        return out
    block = block_of(count * width)
    blocks = triton.cdiv(width, block)
    activation_kernel[(count * blocks,)](
        x, out, width, blocks, x_stride, NAME=name, BLOCK=block,
        num_warps=WARPS, **launch.options(out.device),
    )  # fmt: skip
    return out


def silu_mul(gate: Tensor, up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``silu(gate) * up``, rounded after each (rule 4).

    Args:
        gate: [T, I], float32, bfloat16 or float16; elements of a row adjacent, rows anywhere:
            gate and up may be the halves of one [T, 2 * I].
        up: gate's shape and dtype.
        out: contiguous, gate's shape and dtype.

    Returns:
        ``out``, or a new tensor.

    Raises:
        ValueError: a shape, dtype or layout with no kernel.
    """
    return _gated("silu", gate, up, out)


def gelu_tanh_mul(gate: Tensor, up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``gelu_tanh(gate) * up``, rounded after each (rule 4); all else as ``silu_mul``."""
    return _gated("gelu_tanh", gate, up, out)


def _gated(name: str, gate: Tensor, up: Tensor, out: Tensor | None) -> Tensor:
    check_shape("up", up, gate.shape)
    check_dtype("up", up, gate.dtype)
    out = output(out, gate, gate.shape, gate.dtype)
    count, width, gate_stride = _rows("gate", gate)
    up_count, up_width, up_stride = _rows("up", up)
    if (count, width) != (up_count, up_width):  # one contiguous, the other not
        count, width = gate.shape
        gate_stride, up_stride = gate.stride(0), up.stride(0)
    if not out.numel():
        return out
    block = block_of(out.numel())
    blocks = triton.cdiv(width, block)
    gated_kernel[(count * blocks,)](
        gate, up, out, width, blocks, gate_stride, up_stride, NAME=name, BLOCK=block,
        num_warps=WARPS, **launch.options(out.device),
    )  # fmt: skip
    return out


def _rows(name: str, x: Tensor) -> tuple[int, int, int]:
    """Return how many rows, their width and how far apart; adjacent rows count as one."""
    check_float(name, x)
    if x.is_contiguous():
        return 1, x.numel(), 0
    if x.dim() != 2:
        raise ValueError(f"{name}: got strides {x.stride()}, expected contiguous or [T, I]")
    check_adjacent(name, x)
    return x.shape[0], x.shape[1], x.stride(0)
