"""Continuous batching: which tokens of which requests make up the next step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detinfer.engine.batch import Batch
from detinfer.engine.block_manager import BlockManager
from detinfer.engine.request import Request, RequestState


@dataclass
class Limits:
    """Bounds of one step; may be changed between steps, which no result depends on.

    Attributes:
        max_num_seqs: most requests in a step.
        max_num_batched_tokens: most tokens in a step.
        max_chunk: most prompt tokens of one request in a step; None leaves it to the budget.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_chunk: int | None = None


class ScheduledRow(NamedTuple):
    """The next ``num_tokens`` tokens of a request, from ``request.num_computed`` on."""

    request: Request
    num_tokens: int


class Scheduler:
    """First come, first served; requests that decode go before prompts that still prefill.

    A request starts when the pages for all it can come to hold are free, and keeps them to its
    end: nothing that runs is ever evicted. A large request at the head is not overtaken.
    """

    def __init__(self, block_manager: BlockManager, limits: Limits) -> None:
        self.limits = limits
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of arrival
        self._blocks = block_manager

    def add(self, request: Request) -> None:
        """Puts a request at the end of the waiting queue."""
        self.waiting.append(request)

    def schedule(self) -> list[ScheduledRow]:
        """Admits what fits and lays out one step, at most one row a request."""
        limits = self.limits
        self._admit()
        rows: list[ScheduledRow] = []
        budget = limits.max_num_batched_tokens
        runnable = self.running[: limits.max_num_seqs]
        for request in runnable:
            if request.decoding and budget:
                rows.append(ScheduledRow(request, 1))
                budget -= 1
        for request in runnable:
            if not request.decoding and budget:
                count = min(request.pending_tokens, limits.max_chunk or budget, budget)
                rows.append(ScheduledRow(request, count))
                budget -= count
        return rows

    def finish(self, request: Request) -> None:
        """Takes a request out, whatever its state, and frees its pages."""
        if request.state is RequestState.WAITING:
            self.waiting.remove(request)
        elif request.state is RequestState.RUNNING:
            self.running.remove(request)
            self._blocks.deallocate(request.request_id)
        request.state = RequestState.FINISHED

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            pages = self._blocks.pages_for(request.longest)
            if pages > self._blocks.num_free:
                return
            request.block_table = self._blocks.allocate(request.request_id, pages)
            request.state = RequestState.RUNNING
            self.running.append(self.waiting.popleft())


def make_batch(rows: list[ScheduledRow]) -> Batch:
    """One step's work as the model runner sees it.

    A row asks for logits when its last token is the last the request has.
    """
    counts = np.array([count for _, count in rows], dtype=np.int32)
    starts = np.array([request.num_computed for request, _ in rows], dtype=np.int32)
    query_start = np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])
    input_ids: list[int] = []
    wants_logits: list[bool] = []
    pages = BlockManager.pages_for(int((starts + counts).max()))
    block_tables = np.zeros((len(rows), pages), dtype=np.int32)
    for i, (request, count) in enumerate(rows):
        end = request.num_computed + count
        input_ids.extend(request.token_ids[request.num_computed : end])
        wants_logits.append(end == len(request.token_ids))
        used = BlockManager.pages_for(end)
        block_tables[i, :used] = request.block_table[:used]
    offsets = np.arange(len(input_ids), dtype=np.int32) - np.repeat(query_start[:-1], counts)
    return Batch(
        input_ids=np.array(input_ids, dtype=np.int32),
        positions=np.repeat(starts, counts) + offsets,
        query_start=query_start,
        block_tables=block_tables,
        logit_rows=query_start[1:][wants_logits] - 1,
        deterministic=any(request.params.deterministic for request, _ in rows),
    )
