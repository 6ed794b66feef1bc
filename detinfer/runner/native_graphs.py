"""CUDA graphs of decode steps: captured per padded batch size, replayed from fixed addresses."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detinfer.backends.native_batch import (
    AttentionShape,
    NativeBatch,
    StepLayout,
    fill,
    work_lists,
)
from detinfer.batch import Batch
from detinfer.kernels.triton.attention_work import Layout, Tiling
from detinfer.runner.native_fused import NativeStep

# Padded sizes: a row more than needed costs less than another launch configuration to warm.
LONGEST_SEQUENCE = 16  # rows of a draft and the token before it; longer ones are parts of prompts
SIZES = (1, 2, 4, 8, 16, *range(32, 257, 32), *range(320, 1025, 64))


class _Graph:
    """One captured step and the memory it reads."""

    def __init__(
        self,
        step: NativeStep,
        layout: StepLayout,
        shapes: Sequence[AttentionShape],
        deterministic: bool,
        device: torch.device,
        pool: Any,
    ) -> None:
        self.layout = layout
        size = layout.offsets[-1]
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=True)
        self.host = self._host.numpy()
        self.host[slice(*layout.offsets[2:4])] = -1  # slots: nothing is written while capturing
        self._device = self._host.to(device)
        batch = NativeBatch(self._device, layout, shapes)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            step.forward(batch, deterministic)  # compiles and loads every kernel
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._logits = step.forward(batch, deterministic)

    def replay(self) -> Tensor:
        # The host's memory is free again: the last step ended by waiting for its result.
        self._device.copy_(self._host, non_blocking=True)
        self._graph.replay()
        return self._logits


class DecodeGraphs:
    """Runs steps of one token a sequence by graphs, captured when first needed.

    A draft is so many sequences of one token over the same pages: each layer writes the keys and
    values of all rows before any row attends.

    Args:
        step: what is captured.
        shapes: of the attention layers.
        tilings: of those shapes.
        pages: of the KV cache.
        length: positions of the longest sequence.
    """

    def __init__(
        self,
        step: NativeStep,
        shapes: Sequence[AttentionShape],
        tilings: Sequence[Tiling],
        pages: int,
        length: int,
        device: torch.device,
    ) -> None:
        self._step, self._shapes, self._tilings = step, shapes, tilings
        self._pages, self._length, self._device = pages, length, device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[int, bool], _Graph] = {}

    @staticmethod
    def fits(batch: Batch) -> bool:
        """Tell whether the batch is a token or draft of each sequence, all wanting logits."""
        rows = len(batch.input_ids)
        longest = int(np.diff(batch.query_start).max())
        return rows == len(batch.logit_rows) <= SIZES[-1] and longest <= LONGEST_SEQUENCE

    def forward(self, batch: Batch) -> Tensor:
        """Logits of a batch that fits, valid until the next call. [L, vocab] float32."""
        rows = len(batch.input_ids)
        if rows > len(batch.query_start) - 1:
            batch = batch.one_token_each()
        graph = self._graph(SIZES[bisect_left(SIZES, rows)], batch.deterministic)
        work = work_lists(batch, self._shapes, self._tilings)
        fill(graph.host, graph.layout, batch, work)
        return graph.replay()[:rows]

    def _graph(self, size: int, deterministic: bool) -> _Graph:
        key = (size, deterministic)
        if key not in self._graphs:
            layout = StepLayout(
                tokens=size,
                sequences=size,
                pages=self._pages,
                rows=size,
                work=tuple(
                    Layout.for_load(tiling, shape.group, shape.window, size, 1, self._length)
                    for shape, tiling in zip(self._shapes, self._tilings, strict=True)
                ),
            )
            self._graphs[key] = _Graph(
                self._step, layout, self._shapes, deterministic, self._device, self._pool
            )
        return self._graphs[key]
