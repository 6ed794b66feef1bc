"""Sequences in a paged cache, for tests and timings of attention alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.triton.attention import (
    AttentionConfigs,
    DeviceWorkList,
    Scratch,
    attention,
    configs,
    scratch_for,
)
from detinfer.kernels.triton.attention_work import work_list
from detinfer.kernels.triton.launch import architecture

Part = tuple[int, int]  # keys before, query rows


@dataclass(frozen=True)
class Paged:
    """A batch of sequences, each with keys before it and rows of its own.

    Attributes:
        q: of all rows. [T, heads, dim]
        keys: [pages, kv_heads, 64, dim]
        values: [pages, kv_heads, 64, dim]
        tables: page ids. [R, pages] int32
        parts: of each sequence.
    """

    q: Tensor
    keys: Tensor
    values: Tensor
    tables: Tensor
    parts: tuple[Part, ...]

    @classmethod
    def random(
        cls,
        device: torch.device,
        shape: tuple[int, int, int],
        parts: Sequence[Part],
        seed: int = 0,
    ) -> Paged:
        """Return normal data; shape is (heads, kv_heads, dim). Pages lie in random order."""
        heads, kv_heads, dim = shape
        needed = [-(-(before + rows) // PAGE_SIZE) for before, rows in parts]
        order = np.random.default_rng(seed).permutation(sum(needed)).astype(np.int32)
        tables = np.zeros((len(parts), max(needed)), np.int32)
        for row, pages in zip(tables, np.split(order, np.cumsum(needed)[:-1]), strict=True):
            row[: len(pages)] = pages
        generator = torch.Generator(device).manual_seed(seed)

        def data(*sizes: int) -> Tensor:
            empty = torch.empty(sizes, dtype=torch.bfloat16, device=device)
            return empty.normal_(generator=generator)

        pool = (sum(needed), kv_heads, PAGE_SIZE, dim)
        return cls(
            data(sum(rows for _, rows in parts), heads, dim),
            data(*pool),
            data(*pool),
            torch.from_numpy(tables).to(device),
            tuple(parts),
        )

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.q.shape[1] // self.keys.shape[1]

    @property
    def bytes_read(self) -> int:
        """Of keys and values that its rows see, each counted once."""
        row = 2 * self.keys.shape[1] * self.keys.shape[3] * self.keys.element_size()
        return row * sum(before + rows for before, rows in self.parts)

    @property
    def flops(self) -> int:
        """Of both products, over what causal rows see."""
        seen = sum(rows * before + rows * (rows + 1) // 2 for before, rows in self.parts)
        return 4 * seen * self.q.shape[1] * self.q.shape[2]

    def work(self, config: AttentionConfigs | None = None) -> DeviceWorkList:
        """Return the work list of its batch."""
        dim = self.q.shape[2]
        chosen = config or configs(architecture(self.q.device), self.q.dtype, dim, dim)
        starts = np.cumsum([0, *(rows for _, rows in self.parts)]).astype(np.int32)
        first = np.array([before for before, _ in self.parts], np.int32)
        work = work_list(starts, first, self.group, chosen.tiling(self.group))
        return DeviceWorkList(torch.from_numpy(work.pack()).to(self.q.device), work.layout)

    def scratch(self, work: DeviceWorkList) -> Scratch:
        """Memory for the partial results of that work."""
        return scratch_for(work.layout, self.q.shape[1], self.q.shape[2], self.q.device)

    def run(self, config: AttentionConfigs | None = None, **given: Any) -> Tensor:
        """Attention of all rows, into poisoned memory unless another is given."""
        if "work" not in given:  # not by a default: inside a captured graph none can be made
            given["work"] = self.work(config)
        if "out" not in given:
            given["out"] = torch.full_like(self.q, float("nan"))
        return attention(
            self.q,
            self.keys,
            self.values,
            self.tables,
            scale=self.q.shape[2] ** -0.5,
            config=config,
            **given,
        )

    def cut(self, parts: Sequence[Part]) -> Paged:
        """Rows of the one sequence this holds, as sequences of their own over the same pages."""
        assert len(self.parts) == 1
        rows = [row for before, count in parts for row in range(before, before + count)]
        return replace(
            self,
            q=self.q[rows],
            tables=self.tables.expand(len(parts), -1).contiguous(),
            parts=tuple(parts),
        )
