"""The page that Prometheus scrapes: names ``detinfer:`` and, where vLLM has the same, its suffix.

Always in the classic text format: where a scraper accepts OpenMetrics as well, the library's
encoders write samples without the colon under types that have it, and dashboards find nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

import detinfer
from detinfer.engine.outputs import EngineInfo
from detinfer.server.metrics.counts import Metrics
from detinfer.server.metrics.solving import HALTS, STATUSES, Solving

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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

_Counts = dict[tuple[str, ...], int]


def exposition(
    metrics: Metrics,
    prefix: str,
    model_name: str,
    info: EngineInfo | None,
    stats: Mapping[str, int],
    processes: Mapping[str, int],
    solver_stats: Mapping[str, int],
) -> bytes:
    """Return the page, of ``CONTENT_TYPE``.

    Args:
        metrics: what has been counted.
        prefix: stands before the colon of our own names.
        model_name: the label of all that is about the model.
        info: what the engine is; None before there is one.
        stats: the engine's counts; none before there is one.
        processes: process ids by name.
        solver_stats: the solvers' counts; none without them.
    """
    page = _Page(prefix, {"model_name": model_name})
    _engine(page, stats)
    _requests(page, metrics)
    _puzzles(replace(page, labels={}), metrics.solving, solver_stats)
    _build(page, info)
    _processes(page, processes)
    registry = CollectorRegistry()
    registry.register(page)
    return generate_latest(registry)


@dataclass(frozen=True, eq=False)
class _Page(Collector):
    """One scrape, in the form the encoder reads.

    Attributes:
        labels: of all that is about the model.
    """

    prefix: str
    labels: Mapping[str, str]
    families: list[Metric] = field(default_factory=list)

    def collect(self) -> Iterable[Metric]:
        return self.families

    def gauge(self, name: str, documentation: str, value: float, **more: str) -> None:
        labels = {**self.labels, **more}
        family = GaugeMetricFamily(f"{self.prefix}:{name}", documentation, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        self.families.append(family)

    def counter(self, name: str, documentation: str, count: int) -> None:
        self.counters(name, documentation, (), {(): count})

    def counters(
        self,
        name: str,
        documentation: str,
        by: Sequence[str],
        counts: _Counts,
        of_model: bool = True,
    ) -> None:
        labels = self.labels if of_model else {}
        family = CounterMetricFamily(f"{self.prefix}:{name}", documentation, labels=[*labels, *by])
        for values, count in counts.items():
            family.add_metric([*labels.values(), *values], count)
        self.families.append(family)


def _engine(page: _Page, stats: Mapping[str, int]) -> None:
    pages = stats.get("num_pages", 0)
    used = (pages - stats.get("free_pages", 0)) / pages if pages else 0.0
    page.gauge("num_requests_running", "Requests in the batch.", stats.get("running", 0))
    page.gauge("num_requests_waiting", "Requests that wait.", stats.get("waiting", 0))
    page.gauge("kv_cache_usage_perc", "KV pages in use; 1 is all.", used)
    for name, key, text in _COUNTERS:
        page.counter(name, text, stats.get(key, 0))
    steps: _Counts = {(mode,): stats.get(f"{mode}_steps", 0) for mode in MODES}
    page.counters("steps", "Steps of the engine, by the kernels they ran.", ("mode",), steps)


def _requests(page: _Page, metrics: Metrics) -> None:
    ended = metrics.requests
    modes: _Counts = {(mode,): sum(ended[mode, why] for why in FINISH_REASONS) for mode in MODES}
    page.counters("requests", "Requests to the engine that ended, by mode.", ("mode",), modes)
    page.counters(
        "request_success",
        "Requests to the engine that ended, by the reason.",
        ("finished_reason",),
        {(why,): sum(ended[mode, why] for mode in MODES) for why in FINISH_REASONS},
    )
    page.counter(
        "check_mismatches",
        "Deterministic answers that a check found to differ from those given alone.",
        metrics.check_mismatches,
    )
    for histogram in metrics.histograms():
        # vLLM's name of it looks like a counter's, which Prometheus's own lint refuses.
        vllm = page.prefix == "vllm" and histogram is metrics.iteration_tokens
        suffix = "_total" if vllm else ""
        page.families.append(histogram.family(page.prefix, page.labels, suffix))
    page.counters(
        "http_requests",
        "HTTP requests, by method, route and status.",
        ("method", "route", "status"),
        dict(sorted(metrics.http_requests.items())),
        of_model=False,
    )


def _puzzles(page: _Page, solving: Solving, stats: Mapping[str, int]) -> None:
    page.gauge("num_puzzles_running", "Puzzles being solved.", stats.get("running", 0))
    page.gauge("num_puzzles_waiting", "Puzzles that wait.", stats.get("waiting", 0))
    ended: _Counts = {(one,): solving.ended[one] for one in STATUSES}
    page.counters("puzzles", "Puzzles that ended, by what came of them.", ("status",), ended)
    halted: _Counts = {(one,): solving.halted[one] for one in HALTS}
    page.counters("puzzles_halted", "Answers, by what ended their run.", ("halted_by",), halted)
    page.families.append(solving.steps.family(page.prefix, {}))


def _build(page: _Page, info: EngineInfo | None) -> None:
    page.gauge(
        "build_info",
        "What is served.",
        1,
        version=detinfer.__version__,
        python=platform.python_version(),
        system_fingerprint="" if info is None else info.system_fingerprint,
        profile="" if info is None else info.profile,
        plan="" if info is None else info.plan,
        dtype="" if info is None else info.dtype,
        kv_cache_dtype="" if info is None else info.kv_cache_dtype,
    )


def _processes(page: _Page, processes: Mapping[str, int]) -> None:
    """Memory, CPU time and files of each, under the names of Prometheus's own clients."""
    families: dict[str, Metric] = {}
    for process, pid in processes.items():
        for one in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            same = Metric(one.name, one.documentation, one.type)
            family = families.setdefault(one.name, same)
            for sample in one.samples:
                family.add_sample(sample.name, {"process": process}, sample.value)
    page.families.extend(families.values())
