"""Prometheus metrics under ``detinfer:``, with the suffixes, labels and buckets of vLLM's.

Always in the classic text format: where a scraper accepts OpenMetrics as well, the library's
encoders write samples without the colon under types that have it, and dashboards find nothing.

Plain numbers, touched from the event loop only and read when scraped: an observation costs well
under a microsecond, so that each token may have one. What the engine counts is read from its own
statistics, and so is exact.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

if TYPE_CHECKING:
    from detinfer.engine.process import Stepped

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# fmt: off
_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)
_INTER_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)
_REQUEST = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# fmt: on

# Suffix, the engine's name of the count, help.
_COUNTERS = (
    ("prompt_tokens", "prompt_tokens", "Prompt tokens processed."),
    ("generation_tokens", "generated_tokens", "Tokens generated."),
    ("num_preemptions", "preemptions", "Requests sent back to wait for KV pages."),
    ("prefix_cache_queries", "prefix_queries", "Prompt tokens looked up in the prefix cache."),
    ("prefix_cache_hits", "prefix_hit_tokens", "Prompt tokens found in the prefix cache."),
    ("prefix_cache_evictions", "evictions", "Pages the prefix cache gave up."),
    ("spec_decode_num_draft_tokens", "drafted_tokens", "Tokens guessed ahead."),
    ("spec_decode_num_accepted_tokens", "accepted_tokens", "Guessed tokens that were right."),
)
MODES = ("deterministic", "fast")
FINISH_REASONS = ("stop", "length", "abort", "error")


class Histogram:
    """Counts of values by upper bounds (inclusive), and their sum."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.documentation = documentation
        self.sum = 0.0
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``, so often."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def family(self, labels: Mapping[str, str]) -> HistogramMetricFamily:
        """As Prometheus has it: each bucket holds those below it."""
        buckets: list[tuple[str, float]] = []
        total = 0
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for name, count in zip(names, self._counts, strict=True):
            total += count
            buckets.append((name, total))
        family = HistogramMetricFamily(
            f"detinfer:{self.name}", self.documentation, labels=list(labels)
        )
        family.add_metric(list(labels.values()), buckets, self.sum)
        return family


@dataclass(frozen=True, eq=False)
class _Families(Collector):
    """One scrape, in the form the encoder reads."""

    families: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


class Metrics:
    """What one server counts.

    Attributes:
        check_mismatches: deterministic answers that a check found to differ.
        requests: requests to the engine that have ended, by (mode, finish reason).
        http_requests: HTTP requests that have ended, by (method, route template, status).
    """

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(
            "time_to_first_token_seconds", "From a request's start to its first token.", _TTFT
        )
        self.inter_token_latency = Histogram(
            "inter_token_latency_seconds", "From one token to the next.", _INTER_TOKEN
        )
        self.e2e_request_latency = Histogram(
            "e2e_request_latency_seconds", "From a request's start to its last token.", _REQUEST
        )
        self.request_queue_time = Histogram(
            "request_queue_time_seconds", "From a request's start to its first step.", _REQUEST
        )
        self.iteration_tokens = Histogram(
            "iteration_tokens", "Tokens that went through the model in a step.", _STEP_TOKENS
        )
        self.check_mismatches = 0
        self.requests: Counter[tuple[str, str]] = Counter()
        self.http_requests: Counter[tuple[str, str, str]] = Counter()

    def on_step(self, step: Stepped) -> None:
        """Take note of one message of the engine."""
        if step.num_tokens:
            self.iteration_tokens.observe(step.num_tokens)

    def exposition(self, model_name: str, stats: Mapping[str, int]) -> bytes:
        """The page, of ``CONTENT_TYPE``.

        Args:
            model_name: the label of all that is about the model.
            stats: the engine's counts; none before there is one.
        """
        registry = CollectorRegistry()
        registry.register(_Families(list(self._families({"model_name": model_name}, stats))))
        return generate_latest(registry)

    def _families(self, labels: dict[str, str], stats: Mapping[str, int]) -> Iterator[Metric]:
        pages = stats.get("num_pages", 0)
        used = (pages - stats.get("free_pages", 0)) / pages if pages else 0.0
        for name, value, text in (
            ("num_requests_running", stats.get("running", 0), "Requests in the batch."),
            ("num_requests_waiting", stats.get("waiting", 0), "Requests that wait."),
            ("kv_cache_usage_perc", used, "KV pages in use; 1 is all."),
        ):
            gauge = GaugeMetricFamily(f"detinfer:{name}", text, labels=list(labels))
            gauge.add_metric(list(labels.values()), value)
            yield gauge
        for name, key, text in _COUNTERS:
            yield _counter(name, text, labels, (), {(): stats.get(key, 0)})
        yield _counter(
            "steps",
            "Steps of the engine, by the kernels they ran.",
            labels,
            ("mode",),
            {(mode,): stats.get(f"{mode}_steps", 0) for mode in MODES},
        )
        yield _counter(
            "requests",
            "Requests to the engine that ended, by mode.",
            labels,
            ("mode",),
            {(mode,): sum(self.requests[mode, why] for why in FINISH_REASONS) for mode in MODES},
        )
        yield _counter(
            "request_success",
            "Requests to the engine that ended, by the reason.",
            labels,
            ("finished_reason",),
            {(why,): sum(self.requests[mode, why] for mode in MODES) for why in FINISH_REASONS},
        )
        yield _counter(
            "check_mismatches",
            "Deterministic answers that a check found to differ from those given alone.",
            labels,
            (),
            {(): self.check_mismatches},
        )
        for histogram in (
            self.time_to_first_token,
            self.inter_token_latency,
            self.e2e_request_latency,
            self.request_queue_time,
            self.iteration_tokens,
        ):
            yield histogram.family(labels)
        yield _counter(
            "http_requests",
            "HTTP requests, by method, route and status.",
            {},
            ("method", "route", "status"),
            {key: self.http_requests[key] for key in sorted(self.http_requests)},
        )


def _counter(
    name: str,
    documentation: str,
    labels: Mapping[str, str],
    by: Sequence[str],
    samples: Mapping[tuple[str, ...], int],
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"detinfer:{name}", documentation, labels=[*labels, *by])
    for values, count in samples.items():
        family.add_metric([*labels.values(), *values], count)
    return family
