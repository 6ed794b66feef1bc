"""A step's integers in device memory: one buffer, one transfer, fixed addresses where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detinfer.batch import Batch
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.triton.attention import DeviceWorkList, configs
from detinfer.kernels.triton.attention_work import Layout, Tiling, WorkList, work_list
from detinfer.kernels.triton.launch import architecture

Ints = npt.NDArray[np.int32]

_ALIGN = 4  # ints: every part starts at a multiple of 16 bytes, so kernels specialise alike


@dataclass(frozen=True)
class AttentionShape:
    """What attention layers must share to share a work list."""

    group: int
    window: int
    k_dim: int
    v_dim: int

    def tiling(self, dtype: torch.dtype, device: torch.device) -> Tiling:
        """Return how the launch table cuts sequences for it."""
        return configs(architecture(device), dtype, self.k_dim, self.v_dim).tiling(self.group)


@dataclass(frozen=True)
class StepLayout:
    """Where each part lies in a step's buffer, and how much of it there is room for."""

    tokens: int
    sequences: int
    pages: int
    rows: int
    work: tuple[Layout, ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Ints of: ids, positions, slots, logit rows, starts, block tables and each work list."""
        table = self.sequences * self.pages
        counts = (self.tokens, self.tokens, self.tokens, self.rows, self.sequences + 1, table)
        return (*counts, *(layout.size for layout in self.work))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each of them starts, and the size of the buffer."""
        padded = [-(-size // _ALIGN) * _ALIGN for size in self.sizes]
        return tuple(np.cumsum([0, *padded]).tolist())


def work_lists(
    batch: Batch, shapes: Sequence[AttentionShape], tilings: Sequence[Tiling]
) -> list[WorkList]:
    """Return the work lists of a batch, one a shape."""
    starts = batch.query_start
    # A sequence of no rows has no first position; any will do.
    first = batch.positions[np.minimum(starts[:-1], len(batch.positions) - 1)]
    return [
        work_list(starts, first, shape.group, tiling, shape.window)
        for shape, tiling in zip(shapes, tilings, strict=True)
    ]


def exact_layout(batch: Batch, work: Sequence[WorkList]) -> StepLayout:
    """Room for just this batch."""
    return StepLayout(
        tokens=batch.input_ids.size,
        sequences=batch.block_tables.shape[0],
        pages=batch.block_tables.shape[1],
        rows=batch.logit_rows.size,
        work=tuple(one.layout for one in work),
    )


def fill(buffer: Ints, layout: StepLayout, batch: Batch, work: Sequence[WorkList]) -> None:
    """Write a batch into a buffer of ``layout``; rows beyond the batch's own do nothing.

    A padding row computes token 0 at position 0, writes no page and is attended to by no item.
    """
    parts = [buffer[a : a + n] for a, n in zip(layout.offsets, layout.sizes, strict=False)]
    ids, positions, slots, rows, starts, tables = parts[:6]
    count, sequences = batch.input_ids.size, len(batch.query_start) - 1
    ids[:count], ids[count:] = batch.input_ids, 0
    positions[:count], positions[count:] = batch.positions, 0
    owner = np.repeat(np.arange(sequences), np.diff(batch.query_start))
    pages = batch.block_tables[owner, batch.positions // PAGE_SIZE]
    slots[:count], slots[count:] = pages * PAGE_SIZE + batch.positions % PAGE_SIZE, -1
    rows[: batch.logit_rows.size], rows[batch.logit_rows.size :] = batch.logit_rows, 0
    starts[: sequences + 1], starts[sequences + 1 :] = batch.query_start, count
    table = tables.reshape(layout.sequences, layout.pages)
    width = batch.block_tables.shape[1]
    table[:sequences, :width] = batch.block_tables
    for part, one, room in zip(parts[6:], work, layout.work, strict=True):
        one.pack_into(part, room)


class NativeBatch:
    """A step as the Triton kernels read it.

    Args:
        buffer: filled by ``fill``, on the device. [layout.offsets[-1]] int32
        layout: of the buffer.
        shapes: of the attention layers, in the order of the layout's work.
        longest: see the attribute.

    Attributes:
        input_ids: [T] int32
        positions: [T] int32
        slots: page · 64 + slot of every row, -1 for none. [T] int32
        logit_rows: [L] int32
        starts: first row of each sequence, and T. [R + 1] int32
        longest: rows of the longest sequence if all are whole prompts, else 0.
        block_tables: [R, pages] int32
    """

    def __init__(
        self,
        buffer: Tensor,
        layout: StepLayout,
        shapes: Sequence[AttentionShape],
        longest: int = 0,
    ) -> None:
        parts = [buffer[a : a + n] for a, n in zip(layout.offsets, layout.sizes, strict=False)]
        self.input_ids, self.positions, self.slots, self.logit_rows = parts[:4]
        self.starts, tables = parts[4:6]
        self.longest = longest
        self.block_tables = tables.view(layout.sequences, layout.pages)
        self._work = {
            shape: DeviceWorkList(part, room)
            for shape, part, room in zip(shapes, parts[6:], layout.work, strict=True)
        }

    def work(self, group: int, window: int, k_dim: int, v_dim: int) -> DeviceWorkList:
        """Return the work list of a layer."""
        return self._work[AttentionShape(group, window, k_dim, v_dim)]
