"""Poison and guard bands around what a Triton launcher allocates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from detinfer.testing import assert_same_bits

GUARD = 64  # elements on either side, and so that alignment stays


def poison(dtype: torch.dtype) -> float:
    """What no kernel writes: NaN, or the largest integer but one."""
    return math.nan if dtype.is_floating_point else torch.iinfo(dtype).max - 1


def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A poisoned tensor, and the buffer with the guard bands around it."""
    size = math.prod(shape)
    buffer = torch.full((size + 2 * GUARD,), poison(dtype), dtype=dtype)
    return buffer[GUARD : GUARD + size].view(shape), buffer


def assert_guards_untouched(buffer: torch.Tensor) -> None:
    """Raise AssertionError if anything was written beside the guarded tensor."""
    untouched = torch.full((GUARD,), poison(buffer.dtype), dtype=buffer.dtype)
    assert_same_bits(buffer[:GUARD], untouched, "before the output")
    assert_same_bits(buffer[-GUARD:], untouched, "behind the output")


@contextmanager
def guarded_tensors() -> Iterator[None]:
    """Guard everything that ``torch.empty`` hands out, and check on leaving."""
    buffers: list[torch.Tensor] = []

    def empty(shape: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        assert device.type == "cpu"
        tensor, buffer = guarded(tuple(shape), dtype)
        buffers.append(buffer)
        return tensor

    with mock.patch.object(torch, "empty", empty):
        yield
    assert buffers, "nothing was allocated by torch.empty, so nothing was guarded"
    for buffer in buffers:
        assert_guards_untouched(buffer)


def run(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of an op whose output memory is poisoned and guarded."""
    with guarded_tensors():
        return op(*args, **kwargs)
