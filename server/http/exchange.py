"""One HTTP request as the engine saw it: its generations, and what has come of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from detinfer.engine.outputs import RequestOutput
from detinfer.errors import QueueFullError, RequestError
from detinfer.server.metrics.counts import Metrics


class Generation:
    """One request to the engine, and what has come of it."""

    def __init__(self, metrics: Metrics, deterministic: bool) -> None:
        self.deterministic = deterministic
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        self.digest: str | None = None
        self._metrics = metrics
        self._started = self._first = self._last = time.perf_counter()

    def add(self, output: RequestOutput) -> None:
        """Take note of one increment."""
        now = time.perf_counter()
        new = output.completion_tokens - self.completion_tokens
        if new > 0:
            if self.completion_tokens:
                # Tokens verified in one step arrive at once: each took its share of the time.
                self._metrics.inter_token_latency.observe((now - self._last) / new, new)
            else:
                self.prompt_tokens = output.prompt_tokens
                self._first = now
                first_token = now - self._started
                self._metrics.time_to_first_token.observe(first_token)
                self._metrics.request_queue_time.observe(output.queue_time)
                # The engine's clock began a moment after ours.
                prefill = max(0.0, first_token - output.queue_time)
                self._metrics.request_prefill_time.observe(prefill)
            self.completion_tokens = output.completion_tokens
            self._last = now
        if output.finish_reason is not None:
            self.prompt_tokens = output.prompt_tokens
            self.digest = output.digest
            self.end(output.finish_reason)

    def end(self, finish_reason: str) -> None:
        """Count the request, unless it has ended before."""
        if self.finish_reason is None:
            self.finish_reason = finish_reason
            mode = "deterministic" if self.deterministic else "fast"
            self._metrics.requests[mode, finish_reason] += 1
            self._metrics.e2e_request_latency.observe(time.perf_counter() - self._started)
            if self.completion_tokens:
                self._metrics.request_decode_time.observe(self._last - self._first)
                self._metrics.request_prompt_tokens.observe(self.prompt_tokens)
                self._metrics.request_generation_tokens.observe(self.completion_tokens)


class Exchange:
    """One HTTP request; its generations in the order they were started."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.generations: list[Generation] = []


# Tasks that a route starts inherit it.
current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


@contextmanager
def observing(deterministic: bool) -> Iterator[Callable[[RequestOutput], None]]:
    """Give what to call with each increment of a request to the engine.

    A request left before its end is counted as aborted, one that the engine refused not at all.
    """
    exchange = current.get() or Exchange(Metrics())
    generation = Generation(exchange.metrics, deterministic)
    exchange.generations.append(generation)
    try:
        yield generation.add
    except (QueueFullError, RequestError):
        exchange.generations.remove(generation)
        raise
    except Exception:
        generation.end("error")
        raise
    finally:
        if generation in exchange.generations:
            generation.end("abort")
