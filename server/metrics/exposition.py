"""The page that Prometheus scrapes: names ``detinfer:`` and, where vLLM has the same, its suffix.

Always in the classic text format: where a scraper accepts OpenMetrics as well, the library's
encoders write samples without the colon under types that have it, and dashboards find nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

import detinfer
from detinfer.server.metrics.counts import Metrics

if TYPE_CHECKING:
    from detinfer.engine.outputs import EngineInfo

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


def exposition(
    metrics: Metrics,
    prefix: str,
    model_name: str,
    info: EngineInfo | None,
    stats: Mapping[str, int],
    processes: Mapping[str, int],
) -> bytes:
    """Return the page, of ``CONTENT_TYPE``.

    Args:
        metrics: what has been counted.
        prefix: stands before the colon of our own names.
        model_name: the label of all that is about the model.
        info: what the engine is; None before there is one.
        stats: the engine's counts; none before there is one.
        processes: process ids by name.
    """
    labels = {"model_name": model_name}
    families = [
        *_of_engine(prefix, labels, stats),
        *_of_requests(metrics, prefix, labels),
        _build(prefix, labels, info),
        *_of_processes(processes),
    ]
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry)


@dataclass(frozen=True, eq=False)
class _Families(Collector):
    """One scrape, in the form the encoder reads."""

    families: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def _of_engine(
    prefix: str, labels: Mapping[str, str], stats: Mapping[str, int]
) -> Iterator[Metric]:
    pages = stats.get("num_pages", 0)
    used = (pages - stats.get("free_pages", 0)) / pages if pages else 0.0
    for name, value, text in (
        ("num_requests_running", stats.get("running", 0), "Requests in the batch."),
        ("num_requests_waiting", stats.get("waiting", 0), "Requests that wait."),
        ("kv_cache_usage_perc", used, "KV pages in use; 1 is all."),
    ):
        gauge = GaugeMetricFamily(f"{prefix}:{name}", text, labels=list(labels))
        gauge.add_metric(list(labels.values()), value)
        yield gauge
    counter = partial(_counter, prefix)
    for name, key, text in _COUNTERS:
        yield counter(name, text, labels, (), {(): stats.get(key, 0)})
    yield counter(
        "steps",
        "Steps of the engine, by the kernels they ran.",
        labels,
        ("mode",),
        {(mode,): stats.get(f"{mode}_steps", 0) for mode in MODES},
    )


def _of_requests(metrics: Metrics, prefix: str, labels: Mapping[str, str]) -> Iterator[Metric]:
    counter, requests = partial(_counter, prefix), metrics.requests
    yield counter(
        "requests",
        "Requests to the engine that ended, by mode.",
        labels,
        ("mode",),
        {(mode,): sum(requests[mode, why] for why in FINISH_REASONS) for mode in MODES},
    )
    yield counter(
        "request_success",
        "Requests to the engine that ended, by the reason.",
        labels,
        ("finished_reason",),
        {(why,): sum(requests[mode, why] for mode in MODES) for why in FINISH_REASONS},
    )
    yield counter(
        "check_mismatches",
        "Deterministic answers that a check found to differ from those given alone.",
        labels,
        (),
        {(): metrics.check_mismatches},
    )
    for histogram in metrics.histograms():
        # vLLM's name of it looks like a counter's, which Prometheus's own lint refuses.
        vllm = prefix == "vllm" and histogram is metrics.iteration_tokens
        yield histogram.family(prefix, labels, "_total" if vllm else "")
    yield counter(
        "http_requests",
        "HTTP requests, by method, route and status.",
        {},
        ("method", "route", "status"),
        {key: metrics.http_requests[key] for key in sorted(metrics.http_requests)},
    )


def _build(prefix: str, labels: Mapping[str, str], info: EngineInfo | None) -> Metric:
    about = {
        **labels,
        "version": detinfer.__version__,
        "python": platform.python_version(),
        "system_fingerprint": "" if info is None else info.system_fingerprint,
        "profile": "" if info is None else info.profile,
        "plan": "" if info is None else info.plan,
        "dtype": "" if info is None else info.dtype,
    }
    family = GaugeMetricFamily(f"{prefix}:build_info", "What is served.", labels=list(about))
    family.add_metric(list(about.values()), 1)
    return family


def _of_processes(processes: Mapping[str, int]) -> Iterable[Metric]:
    """Memory, CPU time and files of each, under the names of Prometheus's own clients."""
    families: dict[str, Metric] = {}
    for process, pid in processes.items():
        for one in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            same = Metric(one.name, one.documentation, one.type)
            family = families.setdefault(one.name, same)
            for sample in one.samples:
                family.add_sample(sample.name, {"process": process}, sample.value)
    return families.values()


def _counter(
    prefix: str,
    name: str,
    documentation: str,
    labels: Mapping[str, str],
    by: Sequence[str],
    samples: Mapping[tuple[str, ...], int],
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{prefix}:{name}", documentation, labels=[*labels, *by])
    for values, count in samples.items():
        family.add_metric([*labels.values(), *values], count)
    return family
