"""linear: ``y = x @ weight.T + bias``, one dot chain a result whatever the launch.

Rule N1 of docs/arithmetic.md: K padded with zeros to a multiple of 128, products added along
ascending k into one binary32 accumulator, the bias added last, then one rounding. The k loop is
never split and BLOCK_K divides 128, so tiles, warps, stages and the MMA's sides are free.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from detinfer.kernels.triton import launch
from detinfer.kernels.triton.arguments import (
    check_adjacent,
    check_dtype,
    check_float,
    check_shape,
    check_vector,
)
from detinfer.kernels.triton.matmul_kernels import linear_pointers, linear_tma
from detinfer.kernels.triton.matmul_table import (
    ALIGNMENT,
    K_PAD,
    LinearConfig,
    configs,
    select,
    table,
)

__all__ = ["LinearConfig", "Weight", "configs", "linear", "select", "table"]


class Weight:
    """A linear's weight on its device, never copied; views of it are cached, so it must not move.

    Attributes:
        tensor: [n, k], contiguous, float32, bfloat16 or float16.
        n: output features.
        k: input features.
        dtype: of the tensor, and of the activations it takes.
        arch: compute capability of its device, as one number.
        aligned: whether the tensor's address allows wide loads.

    Raises:
        ValueError: on any other tensor.
    """

    def __init__(self, tensor: Tensor) -> None:
        check_float("weight", tensor)
        if tensor.ndim != 2 or 0 in tensor.shape[1:]:
            raise ValueError(f"weight: got shape {tuple(tensor.shape)}, expected (n, k), k > 0")
        if not tensor.is_contiguous():
            raise ValueError(f"weight: got strides {tensor.stride()}, expected contiguous rows")
        self.tensor = tensor
        self.n, self.k = tensor.shape
        self.dtype = tensor.dtype
        self.arch = launch.architecture(tensor.device)
        self.aligned = tensor.data_ptr() % ALIGNMENT == 0
        self._descriptors: dict[tuple[int, int], TensorDescriptor] = {}

    def descriptor(self, rows: int, depth: int) -> TensorDescriptor:
        """Return the TMA descriptor that loads blocks of [rows, depth]."""
        block = (rows, depth)
        if block not in self._descriptors:
            self._descriptors[block] = _descriptor(self.tensor, self.n, self.k, self.k, block)
        return self._descriptors[block]


def _descriptor(
    tensor: Tensor, rows: int, depth: int, stride: int, block: tuple[int, int]
) -> TensorDescriptor:
    return TensorDescriptor(tensor, [rows, depth], [stride, 1], list(block))


def linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    config: LinearConfig | None = None,
) -> Tensor:
    """``x @ weight.T + bias``: rule N1 of docs/arithmetic.md.

    A row's bits depend on that row, the weight and the bias alone: not on the other rows, their
    number, or the configuration.

    Args:
        x: [m, k] in the weight's dtype, last stride 1.
        weight: [n, k].
        bias: [n], of any float dtype, contiguous; added in float32 before the only rounding.
        out: [m, n] written in place of a new tensor, last stride 1, no overlap with x.
        out_dtype: of a new tensor; x's unless given. float32 keeps the sums as they are.
        config: a launch other than the table's, for tests and benchmarks.

    Returns:
        [m, n].

    Raises:
        ValueError: on a shape, dtype or layout with no kernel.
    """
    out = _checked(x, weight, bias, out, out_dtype)
    m, n, k = x.shape[0], weight.n, weight.k
    if not m or not n:
        return out
    x_stride = x.stride(0) if m > 1 else k  # torch gives a single row any stride
    # No row of x may begin inside another for a descriptor, as an expanded one does.
    aligned = weight.aligned and x_stride >= k and (x.data_ptr() | x_stride) % ALIGNMENT == 0
    if config is None:
        config = select(weight.arch, weight.dtype, n, k, m, aligned)
    elif config.tma and not (aligned and k % ALIGNMENT == 0):
        raise ValueError(
            f"config: got tma=True for rows {x_stride} (x) and {k} (weight) elements apart, "
            f"expected multiples of {ALIGNMENT}, and addresses likewise"
        )
    block_m, block_n, block_k = config.block_m, config.block_n, config.block_k
    tiles_m, tiles_n = triton.cdiv(m, block_m), triton.cdiv(n, block_n)
    grid = (tiles_m * tiles_n,) if config.grouped else (tiles_m, tiles_n)
    constants = {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "SWAP": config.swap,
        "GROUPED": config.grouped,
        "num_warps": config.warps,
        "num_stages": config.stages,
        **launch.options(x.device, early=False),
    }
    if config.tma:
        if config.persistent:
            grid = (min(tiles_m * tiles_n, launch.multiprocessors(x.device)),)
        linear_tma[grid](
            _descriptor(x, m, k, x_stride, (block_m, block_k)),
            weight.descriptor(block_n, block_k),
            bias,
            out,
            m,
            n,
            k,
            out.stride(0),
            PERSISTENT=config.persistent,
            **constants,
        )
    else:
        linear_pointers[grid](
            x,
            weight.tensor,
            bias,
            out,
            m,
            n,
            k,
            x_stride,
            out.stride(0),
            EVEN_N=n % block_n == 0,
            EVEN_K=k % K_PAD == 0,
            **constants,
        )
    return out


def _checked(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    out: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """Return the tensor to write, after every check."""
    if x.ndim != 2 or x.shape[1] != weight.k:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (m, {weight.k})")
    check_dtype("x", x, weight.dtype)
    check_adjacent("x", x)
    check_vector("bias", bias, weight.n)
    shape = (x.shape[0], weight.n)
    if out is None:
        out = x.new_empty(shape, dtype=out_dtype)
    else:
        check_shape("out", out, shape)
        check_dtype("out", out, out.dtype if out_dtype is None else out_dtype)
        check_adjacent("out", out)
    check_float("out", out)
    return out
