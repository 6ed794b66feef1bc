"""Continuous batching: which tokens of which requests make up the next step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detinfer.config import pages_for
from detinfer.engine.block_manager import BlockManager
from detinfer.engine.request import Request, RequestState
from detinfer.kernels.constants import PAGE_SIZE


@dataclass
class Limits:
    """Bounds of one step; may be changed between steps, which no result depends on.

    Attributes:
        max_num_seqs: most requests in a step.
        max_num_batched_tokens: most tokens in a step.
        max_chunk: most prompt tokens of one request in a step; None leaves it to the budget.
        max_with_drafts: tokens up to which drafts may fill a step; beyond a few, each costs time.
        max_scored: most positions of prompts in a step whose logits are wanted: each is a whole row
            of the vocabulary in memory, and everyone waits while it is ranked.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_chunk: int | None = None
    max_with_drafts: int = 0
    max_scored: int = 256


class ScheduledRow(NamedTuple):
    """The next ``num_tokens`` tokens of a request, from ``request.num_computed`` on.

    Attributes:
        draft: guesses of the tokens after its last one, to be verified in the same step.
        scored: positions of the prompt whose logits say how likely the token after them was.
        pooled: positions of the prompt whose hidden states are wanted.
    """

    request: Request
    num_tokens: int
    draft: Sequence[int] = ()
    scored: range = range(0)
    pooled: range = range(0)


class Scheduler:
    """First come, first served; requests that decode go before prompts that still prefill.

    A request takes pages as it grows. When none is left, the newest running request gives all of
    its own back and waits to be computed anew: the oldest always gets on, so everyone does. Nobody
    is overtaken while waiting.

    Args:
        block_manager: the pages.
        limits: of a step.
        prefix_caching: whether a prompt may start from pages that others have computed.

    Attributes:
        preemptions: requests sent back to wait so far.
        prefix_hits: pages taken from the prefix cache so far.
        prefix_queries: prompt tokens that pages were looked up for.
        started: ids of requests admitted for the first time, in the engine's last step.
        current: whom the scheduler was busy with last: who is to blame if that raised.
    """

    def __init__(
        self, block_manager: BlockManager, limits: Limits, prefix_caching: bool = True
    ) -> None:
        self.limits = limits
        self.prefix_caching = prefix_caching
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of arrival
        self.preemptions = 0
        self.prefix_hits = 0
        self.prefix_queries = 0
        self.started: list[str] = []
        self.current: Request | None = None
        # What the step being laid out has left, in tokens and in positions to score.
        self._budget = self._scorable = 0
        self._blocks = block_manager

    def add(self, request: Request) -> None:
        """Put a request at the end of the waiting queue."""
        self.waiting.append(request)

    def schedule(self) -> list[ScheduledRow]:
        """Lays out one step, at most one row a request, and admits what fits."""
        limits, rows = self.limits, dict[Request, int]()
        self._budget, self._scorable = limits.max_num_batched_tokens, limits.max_scored
        self.current = None
        runnable = self.running[: limits.max_num_seqs]
        preempted = self.preemptions
        decodes: list[Request] = []
        prefills: list[Request] = []
        for request in runnable:
            self.current = request
            (decodes if request.decoding else prefills).append(request)
        for request in (*decodes, *prefills):
            self.current = request
            self._give_row(request, rows)
        while self.waiting and preempted == self.preemptions:
            if len(self.running) >= limits.max_num_seqs or not self._budget:
                break
            self.current = self.waiting[0]
            if not self._admit(self.current):
                break
            self._give_row(self.current, rows)
        scheduled = []
        for request, count in rows.items():
            self.current = request
            draft = self._draft(request) if count == request.pending_tokens else ()
            scored, pooled = request.to_score(count), request.to_pool(count)
            scheduled.append(ScheduledRow(request, count, draft, scored, pooled))
        return scheduled

    def rebuild(self, requests: Iterable[Request]) -> None:
        """Make the queues and the pages anew from ``requests``, in order of arrival, alone."""
        self.running, self.waiting = [], deque()
        for request in requests:
            if request.state is RequestState.RUNNING:
                self.running.append(request)
            elif request.state is RequestState.WAITING:
                self.waiting.append(request)
        self._blocks.rebuild(request.request_id for request in self.running)

    def name_pages(self, request: Request) -> None:
        """Tell the prefix cache of the pages that a request has filled."""
        if not self.prefix_caching:
            return
        pages = self._blocks.table(request.request_id)
        for page in range(request.named, request.num_computed // PAGE_SIZE):
            self._blocks.cache.add(pages[page], *request.page_key(page))
            request.named = page + 1

    def finish(self, request: Request) -> None:
        """Take a request out, whatever its state, and free its pages."""
        if request.state is RequestState.WAITING:
            self.waiting.remove(request)
        elif request.state is RequestState.RUNNING:
            self.running.remove(request)
            self._blocks.deallocate(request.request_id)
        request.state = RequestState.FINISHED

    def _give_row(self, request: Request, rows: dict[Request, int]) -> None:
        """Schedule what the budget and the pages allow of a running request's next tokens."""
        if request.state is not RequestState.RUNNING or not self._budget:
            return
        count = min(request.pending_tokens, self._budget)
        if not request.decoding:
            count = min(count, self.limits.max_chunk or count)
        if request.to_score(count):
            if not self._scorable:
                return
            count = min(count, self._scorable)
        wanted = pages_for(request.num_computed + count) - len(request.block_table)
        while wanted > self._blocks.num_free and self.running[-1] is not request:
            self.current = self.running[-1]
            self._take_back(self.current, rows)
            self._preempt(self.current)
        self.current = request
        if request.drafts is not None and request.drafts.until:
            wanted = max(wanted, pages_for(request.drafts.until) - len(request.block_table))
        granted = min(wanted, self._blocks.num_free)
        if granted > 0:
            self._blocks.extend(request.request_id, granted)
            self._read_table(request)
        room = len(request.block_table) * PAGE_SIZE - request.num_computed
        if room > 0:
            rows[request] = min(count, room)
            self._budget -= rows[request]
            self._scorable -= len(request.to_score(rows[request]))

    def _take_back(self, request: Request, rows: dict[Request, int]) -> None:
        """Free what a row was to have of the step."""
        count = rows.pop(request, 0)
        self._budget += count
        self._scorable += len(request.to_score(count))

    def _draft(self, request: Request) -> Sequence[int]:
        """Return a draft that the step, the request and its pages have room for."""
        limits = self.limits
        most = min(self._budget, self._scorable)
        if request.drafts is None or request.drafts.until <= len(request.token_ids):
            most = min(most, self._budget + limits.max_with_drafts - limits.max_num_batched_tokens)
        room = len(request.block_table) * PAGE_SIZE - len(request.token_ids)
        draft = request.draft(min(most, room))
        self._budget -= len(draft)
        self._scorable -= len(draft)
        return draft

    def _admit(self, request: Request) -> bool:
        """Start a waiting request if the pages for all it has so far are there."""
        if not self._blocks.num_free:  # it needs one at least, whatever the cache has
            return False
        shared = self._cached_prefix(request)
        wanted = pages_for(len(request.token_ids)) - len(shared)
        if wanted > self._blocks.num_free - self._blocks.num_idle(shared):
            return False
        self._blocks.allocate(request.request_id, 0, shared)
        self._read_table(request)
        self.prefix_hits += len(shared)
        request.named = len(shared)
        request.num_computed = len(shared) * PAGE_SIZE
        if request.cached_tokens is None:
            request.cached_tokens = request.num_computed
            request.started = time.monotonic()
            self.started.append(request.request_id)
            self.prefix_queries += request.prompt_tokens * self.prefix_caching
        request.state = RequestState.RUNNING
        self.running.append(self.waiting.popleft())
        return True

    def _cached_prefix(self, request: Request) -> list[int]:
        """Find the cached pages of a request's first tokens; one at least is left to compute."""
        pages: list[int] = []
        count = len(request.token_ids)
        # What is wanted of a token but its keys and values takes the model to compute it.
        wanted = request.to_score(count) or request.to_pool(count - 1)
        if self.prefix_caching and not wanted:
            for i in range((count - 1) // PAGE_SIZE):
                page = self._blocks.cache.find(*request.page_key(i))
                if page is None:
                    break
                pages.append(page)
        return pages

    def _preempt(self, request: Request) -> None:
        self._blocks.deallocate(request.request_id)
        request.block_table = np.empty(0, dtype=np.int32)
        request.num_computed = 0
        request.state = RequestState.WAITING
        self.running.remove(request)
        self.waiting.appendleft(request)
        self.preemptions += 1

    def _read_table(self, request: Request) -> None:
        request.block_table = np.array(self._blocks.table(request.request_id), dtype=np.int32)
