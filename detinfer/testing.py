"""What the kernel tests share: bit equality, awkward shapes, poisoned and guarded memory.

Equality here is of bits, never of values: -0 differs from +0. Only the bits of a NaN are free
(docs/arithmetic.md), so any NaN equals any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numba
import numpy as np
import numpy.typing as npt
import torch

# Row counts around every tile edge a kernel is likely to have.
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 64, 65, 257)
# Reduction lengths: below, at and above the 64 lanes; one, two, four and eight segments; none.
DEPTHS = (1, 7, 48, 63, 64, 65, 128, 192, 512, 576, 1000, 1536)
# Output columns that leave every vector width a tail.
COLUMNS = (1, 3, 17, 63, 65, 130)
NORM_SIZES = (1, 31, 64, 65, 576, 1000)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Numbers that expose flushed subnormals, lost signs and early overflow.
SPECIAL = np.array(
    [0, -0.0, 1, -1, 1e-45, -1e-45, 1.1754942e-38, -1.1754944e-38, 3.4028235e38, -1e30, 1e-20],
    dtype=np.float32,
)

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_GUARD = 64  # elements on either side of a guarded buffer


def bits(x: Any) -> npt.NDArray[Any]:
    """Return the bit patterns of a tensor or array as unsigned integers, every NaN alike."""
    if isinstance(x, torch.Tensor):
        x = x.detach().contiguous()
        nan = torch.isnan(x).numpy() if x.is_floating_point() else None
        x = x.view(torch.uint16).numpy() if x.element_size() == 2 else x.numpy()
    else:
        x = np.ascontiguousarray(x)
        nan = np.isnan(x) if x.dtype.kind == "f" else None
    pattern: npt.NDArray[Any] = x.view(_BITS[x.dtype.itemsize]).copy()
    if nan is not None:
        pattern[nan] = np.iinfo(pattern.dtype).max
    return pattern


def same_bits(actual: Any, expected: Any) -> bool:
    """Return whether shapes and bits are equal; the type of the container does not matter."""
    a, b = bits(actual), bits(expected)
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


def assert_same_bits(actual: Any, expected: Any, what: str = "") -> None:
    """Raise with the first difference unless both have the same shape and bits."""
    a, b = bits(actual), bits(expected)
    if a.shape != b.shape or a.dtype != b.dtype:
        raise AssertionError(f"{what}: got {a.dtype}{a.shape}, expected {b.dtype}{b.shape}")
    different = np.argwhere(a != b)
    if len(different):
        first = tuple(int(i) for i in different[0])
        got, wanted = _value(actual, first), _value(expected, first)
        raise AssertionError(
            f"{what}: {len(different)} of {a.size} elements differ, first at {first}: "
            f"got {got!r} (0x{int(a[first]):x}), expected {wanted!r} (0x{int(b[first]):x})"
        )


def _value(x: Any, index: tuple[int, ...]) -> object:
    return x[index].item()


def to_torch(x: npt.NDArray[np.float32], dtype: str = "float32") -> torch.Tensor:
    """Return a tensor of the named dtype from binary32 values that it holds exactly."""
    tensor = torch.from_numpy(np.array(x)).to(DTYPES[dtype])
    assert_same_bits(tensor.float(), x, f"values given as {dtype}")
    return tensor


def rounded_normal(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "float32", scale: float = 1.0
) -> npt.NDArray[np.float32]:
    """Return normal deviates as binary32 values that the named dtype holds exactly."""
    x = (rng.standard_normal(shape) * scale).astype(np.float32)
    return torch.from_numpy(x).to(DTYPES[dtype]).float().numpy()


_compiled: set[object] = set()


def run(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the result of an op whose output memory is poisoned and guarded.

    An op's first call is made plain before: nothing is guarded while a compiler runs.
    """
    if op not in _compiled:
        op(*args, **kwargs)
        _compiled.add(op)
    with guarded_allocations():
        return op(*args, **kwargs)


@contextmanager
def guarded_allocations() -> Iterator[None]:
    """Fill what ``np.empty`` and ``np.empty_like`` hand out with NaN, between guard bands.

    An element that a kernel leaves unwritten shows as NaN (integers: their largest value). On
    leaving, a band that anything wrote to raises ``AssertionError``.
    """
    bands: list[npt.NDArray[Any]] = []

    def empty(shape: Any, dtype: Any = np.float64) -> npt.NDArray[Any]:
        size = int(np.prod(shape))
        dtype = np.dtype(dtype)
        buffer = np.full(size + 2 * _GUARD, _poison(dtype), dtype)
        bands.extend((buffer[:_GUARD], buffer[_GUARD + size :]))
        return buffer[_GUARD : _GUARD + size].reshape(shape)

    def empty_like(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return empty(x.shape, x.dtype)

    with (
        mock.patch.object(np, "empty", empty),
        mock.patch.object(np, "empty_like", empty_like),
    ):
        yield
    assert bands, "nothing was allocated: the op no longer uses np.empty, so nothing was guarded"
    for number, band in enumerate(bands):
        untouched = np.full(_GUARD, _poison(band.dtype), band.dtype)
        assert_same_bits(band, untouched, f"guard band {number}")


def _poison(dtype: np.dtype[Any]) -> Any:
    return np.nan if dtype.kind == "f" else np.iinfo(dtype).max


def surrounded(x: torch.Tensor, by: float = float("nan")) -> torch.Tensor:
    """Copy a tensor into a larger buffer filled with ``by``: reading past an end shows."""
    buffer = torch.full((x.numel() + 2 * _GUARD,), by, dtype=x.dtype)
    inner = buffer[_GUARD : _GUARD + x.numel()].view(x.shape)
    inner.copy_(x)
    return inner


def assert_rows_independent(
    op: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, what: str = ""
) -> None:
    """Every row of ``op(x)`` has the bits it has alone, in another slot and in another order."""
    whole = op(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(len(x)))
    assert_same_bits(op(x[order]), whole[order], f"{what}, rows reordered")
    for row in {0, len(x) // 2, len(x) - 1}:
        assert_same_bits(op(x[row : row + 1]), whole[row : row + 1], f"{what}, row {row} alone")
    for count in {min(len(x), size) for size in (2, 3, 5, 8, 64)}:
        assert_same_bits(op(x[-count:]), whole[-count:], f"{what}, last {count} rows")


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Run kernels on this many threads, or as many as there are."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)
