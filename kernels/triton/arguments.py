"""What the launchers check of their arguments, and how they read a tensor as rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detinfer.kernels.triton.launch import TRITON_DTYPES


def check_float(name: str, x: Tensor) -> None:
    """Raise ValueError unless x has a dtype the kernels compute with."""
    if x.dtype not in TRITON_DTYPES:
        raise ValueError(f"{name}: got {x.dtype}, expected float32, bfloat16 or float16")


def check_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError unless x has this shape."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected {tuple(shape)}")


def check_dtype(name: str, x: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError unless x has this dtype."""
    if x.dtype != dtype:
        raise ValueError(f"{name}: got {x.dtype}, expected {dtype}")


def check_adjacent(name: str, x: Tensor) -> None:
    """Raise ValueError unless the elements of each row of x lie side by side."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"{name}: got strides {x.stride()}, expected 1 in the last dimension")


def check_vector(name: str, x: Tensor | None, size: int) -> None:
    """Raise ValueError unless x is None or a float vector [size]."""
    if x is not None:
        check_float(name, x)
        check_shape(name, x, (size,))
        check_adjacent(name, x)


def output(out: Tensor | None, like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a new tensor beside ``like``, or ``out`` if it is one that fits.

    Raises:
        ValueError: ``out`` has another shape or dtype or is not contiguous.
    """
    if out is None:
        return torch.empty(shape, dtype=dtype, device=like.device)
    check_shape("out", out, shape)
    check_dtype("out", out, dtype)
    if not out.is_contiguous():
        raise ValueError(f"out: got strides {out.stride()}, expected a contiguous tensor")
    return out


def rows(name: str, x: Tensor) -> tuple[Tensor, int, int, int, int]:
    """``x`` as rows, and how many, how many to a group, and the strides of groups and rows.

    Any leading shape that two strides can describe stays where it is; another is copied.

    Raises:
        ValueError: no float dtype, no dimension, or the elements of a row lie apart.
    """
    check_float(name, x)
    if not x.dim():
        raise ValueError(f"{name}: got a scalar, expected at least 1 dimension")
    if x.dim() > 3:
        x = x.flatten(0, -3)
    check_adjacent(name, x)
    if x.dim() == 3:
        groups, inner = x.shape[:2]
        return x, groups * inner, inner, x.stride(0), x.stride(1)
    if x.dim() == 2:
        return x, x.shape[0], 1, x.stride(0), 1
    return x, 1, 1, x.shape[0], 1
