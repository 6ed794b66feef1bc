"""What attention attends over on the CPU: the page pool, and a step's rows and pages."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detinfer.backends import LayerCacheSpec
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.cpu.attention_state import state_floats
from detinfer.kernels.cpu.attention_work import work_items
from detinfer.kernels.cpu.jit import numba
from detinfer.kernels.cpu.pages import padded

_LINE = 64  # bytes
Work = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def page_bytes(spec: LayerCacheSpec, dtype: torch.dtype) -> int:
    """Bytes of one page of 64 tokens, kept in ``dtype``."""
    v_pad: int = padded(spec.v_dim)
    return spec.kv_heads * PAGE_SIZE * (spec.k_dim + v_pad) * dtype.itemsize


def _zeros(dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
    """Zeros that begin at a cache line: a vector that lies across two is read twice."""
    size = np.dtype(dtype).itemsize
    numbers = np.zeros(math.prod(shape) + _LINE // size, dtype)
    start = -numbers.ctypes.data % _LINE // size
    return numbers[start : start + math.prod(shape)].reshape(shape)


class KVCache:
    """The page pool of every attention layer, allocated once (untouched pages cost no memory).

    Args:
        specs: of the layers.
        num_pages: in the pool.
        dtype: of activations.
        kept: float32, or bfloat16, to which keys and values are rounded when they are written.

    Attributes:
        size: bytes of one number in a page.
        keys: per layer. [pages, kv_heads, k_dim, 64] float32, or uint16 for bfloat16
        values: per layer, likewise. [pages, kv_heads, 64, v_dim padded to 16]
    """

    def __init__(
        self,
        specs: Sequence[LayerCacheSpec],
        num_pages: int,
        dtype: torch.dtype = torch.float32,
        kept: torch.dtype = torch.float32,
    ) -> None:
        self.specs, self.num_pages, self.dtype, self.kept = tuple(specs), num_pages, dtype, kept
        self.size = kept.itemsize
        number = {torch.float32: np.float32, torch.bfloat16: np.uint16}[kept]
        self.keys = [_zeros(number, num_pages, s.kv_heads, s.k_dim, PAGE_SIZE) for s in specs]
        self.values = [
            _zeros(number, num_pages, s.kv_heads, PAGE_SIZE, padded(s.v_dim)) for s in specs
        ]

    def write(self, layer: int, k: Tensor, v: Tensor, batch: BatchTensors) -> None:
        """Store keys and values [T, kv_heads, dim] of a batch (the stock path's cache write)."""
        pages, slots = batch.pages, batch.slots
        self.keys[layer][pages, :, :, slots] = self._numbers(k)
        self.values[layer][pages, :, slots, : v.shape[-1]] = self._numbers(v)

    def gather(
        self, layer: int, table: npt.NDArray[np.int32], length: int
    ) -> tuple[Tensor, Tensor]:
        """One sequence's first ``length`` keys and values. [kv_heads, length, dim] each"""
        spec, pages = self.specs[layer], table[: -(-length // PAGE_SIZE)]
        k = self.keys[layer][pages].transpose(1, 0, 3, 2).reshape(spec.kv_heads, -1, spec.k_dim)
        v = self.values[layer][pages].transpose(1, 0, 2, 3)
        v = v.reshape(spec.kv_heads, k.shape[1], -1)[:, :length, : spec.v_dim]
        return self._tensor(k[:, :length]), self._tensor(np.ascontiguousarray(v))

    def _numbers(self, x: Tensor) -> npt.NDArray[Any]:
        """Round to what pages hold."""
        kept = x.to(self.kept)
        return (kept.view(torch.uint16) if kept.dtype == torch.bfloat16 else kept).numpy()

    def _tensor(self, numbers: npt.NDArray[Any]) -> Tensor:
        """Widen to activations what pages hold."""
        return torch.from_numpy(numbers).view(self.kept).to(self.dtype)


class BatchTensors:
    """A batch's metadata as attention reads it.

    Args:
        positions: absolute position of every flat row. [T] int32
        query_start: first flat row of each sequence, and T. [R + 1] int32
        block_tables: page ids of each sequence. [R, max pages] int32
    """

    def __init__(
        self,
        positions: npt.NDArray[np.int32],
        query_start: npt.NDArray[np.int32],
        block_tables: npt.NDArray[np.int32],
    ) -> None:
        self.positions, self.query_start, self.block_tables = (
            np.ascontiguousarray(a, dtype=np.int32) for a in (positions, query_start, block_tables)
        )
        self._work: dict[tuple[int, int, int], Work] = {}

    def work(self, kv_heads: int, group: int, v_dim: int) -> Work:
        """Work items for a head layout and room for what they merge, made once a batch."""
        key = (kv_heads, group, v_dim)
        if key not in self._work:
            items, slots, rows = work_items(
                self.query_start, self.positions, kv_heads, group, numba.get_num_threads()
            )
            floats = state_floats(rows * group, padded(v_dim))
            self._work[key] = items, np.empty((slots, floats), np.float32)
        return self._work[key]

    @functools.cached_property
    def sequences(self) -> npt.NDArray[np.int64]:
        """The sequence each flat row belongs to. [T]"""
        return np.repeat(np.arange(self.query_start.size - 1), np.diff(self.query_start))

    @functools.cached_property
    def pages(self) -> npt.NDArray[np.int32]:
        """The page of each flat row. [T]"""
        pages: npt.NDArray[np.int32] = self.block_tables[
            self.sequences, self.positions // PAGE_SIZE
        ]
        return pages

    @functools.cached_property
    def slots(self) -> npt.NDArray[np.int32]:
        """The slot in its page of each flat row. [T]"""
        slots: npt.NDArray[np.int32] = self.positions % PAGE_SIZE
        return slots
