from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_engine import INFO, FakeEngine
from prometheus_client.parser import text_string_to_metric_families as parse

import detinfer
from detinfer.server.metrics.histogram import Histogram

DASHBOARD = Path(__file__).parents[2] / "server" / "dashboards" / "grafana.json"
# What dashboards and benchmarks that know vLLM look for, behind its own prefix.
VLLM_SUFFIXES = {
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "num_preemptions_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total",
    *(
        f"{name}_{part}"
        for name in (
            "time_to_first_token_seconds",
            "inter_token_latency_seconds",
            "e2e_request_latency_seconds",
            "request_queue_time_seconds",
            "request_prefill_time_seconds",
            "request_decode_time_seconds",
            "request_prompt_tokens",
            "request_generation_tokens",
        )
        for part in ("bucket", "sum", "count")
    ),
}


def _samples(client) -> list[Any]:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return [one for family in parse(response.text) for one in family.samples]


def _value(client, name: str, **labels: str) -> float:
    found = [
        one.value
        for one in _samples(client)
        if one.name == f"detinfer:{name}" and labels.items() <= one.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_vllms_suffixes_are_there_from_the_start_with_the_models_name(make_client):
    for client, model in ((make_client(), "fake-model"), (make_client(loading=True), "")):
        samples = _samples(client)
        names = {one.name.removeprefix("detinfer:") for one in samples}
        assert names >= VLLM_SUFFIXES
        assert {one.labels.get("model_name", model) for one in samples} == {model}
        assert all(one.name.startswith(("detinfer:", "process_")) for one in samples)


def test_a_prefix_gives_every_metric_the_name_that_vllm_has_for_it(make_client):
    client = make_client(metrics_prefix="vllm")
    client.generate({"prompt": "a", "max_tokens": 2})
    names = {one.name for one in _samples(client) if not one.name.startswith("process_")}
    assert all(name.startswith("vllm:") for name in names)
    iterations = {f"iteration_tokens_total_{part}" for part in ("bucket", "sum", "count")}
    assert {name.removeprefix("vllm:") for name in names} >= VLLM_SUFFIXES | iterations
    typed = re.findall(r"^# TYPE (\S+)", client.get("/metrics").text, re.MULTILINE)
    assert not any(name.startswith("detinfer") for name in typed)


def test_build_info_says_what_is_served(make_client):
    [loading] = [one for one in _samples(make_client(loading=True)) if "build_info" in one.name]
    [ready] = [one for one in _samples(make_client()) if "build_info" in one.name]
    assert loading.value == ready.value == 1
    assert loading.labels["version"] == ready.labels["version"] == detinfer.__version__
    assert loading.labels["system_fingerprint"] == ""
    about = {"system_fingerprint": INFO.system_fingerprint, "profile": "portable", "plan": "fused"}
    about |= {"dtype": "float32", "kv_cache_dtype": "float32"}
    assert about.items() <= ready.labels.items()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_cpu_time_are_told_of_both_processes(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    with subprocess.Popen(["sleep", "60"]) as other:
        engine.pid = other.pid
        found = {(one.name, one.labels.get("process")): one.value for one in _samples(client)}
        for process in ("server", "engine"):
            assert found["process_resident_memory_bytes", process] > 0
            assert found["process_cpu_seconds_total", process] >= 0
            assert found["process_open_fds", process] > 0
        name = "process_resident_memory_bytes"
        assert found[name, "server"] > 5 * found[name, "engine"]
        other.kill()
    engine.state = "dead"
    processes = {one.labels.get("process") for one in _samples(client)}
    assert processes == {"server", None}


def test_a_requests_phases_and_lengths_are_counted(make_client):
    client = make_client()
    client.generate({"prompt": "abc", "max_tokens": 4})
    client.generate({"prompt": "abcde", "max_tokens": 1})
    for name in ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds"):
        assert _value(client, f"request_{name}_count") == 2
        assert _value(client, f"request_{name}_bucket", le="0.001") >= 0
    assert _value(client, "request_prompt_tokens_sum") == 8
    assert _value(client, "request_generation_tokens_sum") == 5
    assert _value(client, "request_generation_tokens_bucket", le="1.0") == 1
    whole = _value(client, "e2e_request_latency_seconds_sum")
    phases = ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds")
    assert sum(_value(client, f"request_{name}_sum") for name in phases) <= whole


def test_every_end_of_a_request_is_counted_once_by_reason_and_by_mode(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    for deterministic, stream in ((True, False), (True, True), (False, False)):
        body = {"prompt": "a", "max_tokens": 3, "deterministic": deterministic, "stream": stream}
        client.generate(body)
    client.generate({"prompt": ["a", "b"], "max_tokens": 1})
    client.generate({"prompt": "a", "stop_token_ids": [13]})  # refused: never a request
    engine.fail_after = 1
    client.generate({"prompt": "a"})
    engine.fail_after, engine.queue_full = None, True
    client.generate({"prompt": "a"})
    engine.queue_full, engine.die_after = False, 1
    client.generate({"prompt": "a"})
    ends = {
        reason: _value(client, "request_success_total", finished_reason=reason)
        for reason in ("length", "stop", "abort", "error")
    }
    assert ends == {"length": 5, "stop": 0, "abort": 0, "error": 2}
    assert _value(client, "requests_total", mode="deterministic") == 6
    assert _value(client, "requests_total", mode="fast") == 1
    assert _value(client, "e2e_request_latency_seconds_count") == 7
    assert _value(client, "time_to_first_token_seconds_count") == 7
    assert _value(client, "inter_token_latency_seconds_count") == 3 * 2 + 1


def test_http_requests_are_counted_by_route_never_by_path(client):
    for path in ("/v1/models/fake-model", "/v1/models/no/such?x=1", "/a-b-c", "/d-e-f"):
        client.get(path)
    client.get("/generate")
    client.generate({"prompt": 5})
    counts = {
        (one.labels["method"], one.labels["route"], one.labels["status"]): one.value
        for one in _samples(client)
        if one.name == "detinfer:http_requests_total"
    }
    assert counts == {
        ("GET", "/v1/models/{model_id:path}", "200"): 1,
        ("GET", "/v1/models/{model_id:path}", "404"): 1,
        ("GET", "none", "404"): 2,
        ("GET", "/generate", "405"): 1,
        ("POST", "/generate", "400"): 1,
    }


def test_metrics_are_answered_in_every_state_and_guarded_like_the_rest(make_client):
    client = make_client(FakeEngine(die_after=0))
    client.generate({"prompt": "a"})
    assert client.app.state.service.state == "dead"
    assert _value(client, "request_success_total", finished_reason="error") == 1
    assert make_client(api_keys=("k",)).get("/metrics").status_code == 401


# What Prometheus 2 and 3 send, a demand for OpenMetrics, and nothing.
ACCEPTED = (
    "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;"
    "q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3",
    "application/openmetrics-text; version=1.0.0",
    "",
)


@pytest.mark.parametrize("accept", ACCEPTED)
def test_samples_have_the_names_of_their_types_whatever_the_scraper_accepts(client, accept):
    response = client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    typed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", response.text, re.MULTILINE))
    documented = re.findall(r"^# HELP (\S+) .", response.text, re.MULTILINE)
    assert list(typed) == documented
    for name in re.findall(r"^([^#\s{]+)", response.text, re.MULTILINE):
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert typed[name if name in typed else family], name
        assert name.endswith("_total") == (typed.get(name) == "counter"), name


def test_each_app_counts_for_itself(make_client):
    one, other = make_client(), make_client()
    one.generate({"prompt": "a", "max_tokens": 1})
    assert _value(one, "requests_total", mode="deterministic") == 1
    assert _value(other, "requests_total", mode="deterministic") == 0


def test_a_histograms_buckets_hold_what_is_at_or_below_their_bound():
    histogram = Histogram("x", "", (1.0, 2.5))
    for value, times in ((0.5, 1), (1.0, 2), (1.1, 3), (2.5, 4), (9.0, 5)):
        histogram.observe(value, times)
    samples = {
        one.labels.get("le", one.name): one.value
        for one in histogram.family("a", {"m": "n"}).samples
    }
    assert samples == {
        "1.0": 3,
        "2.5": 10,
        "+Inf": 15,
        "a:x_count": 15,
        "a:x_sum": pytest.approx(0.5 + 2 + 3.3 + 10 + 45),
    }


def _expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_the_dashboard_reads_what_is_exposed_and_shows_all_of_it(client):
    # One of each, so that no family is without a sample.
    client.generate({"prompt": "a", "max_tokens": 2})
    exposed = {one.name for one in _samples(client)}
    used = {
        name
        for text in _expressions()
        for name in re.findall(r"(?:detinfer:|process_)\w+(?=[{\[])", text)
    }
    assert used
    assert used <= exposed

    def family(name: str) -> str:
        return re.sub(r"_(bucket|sum|count)$", "", name)

    # Of processes the files are left to whoever looks for a leak of them.
    ours = {family(name) for name in exposed if not name.startswith("process_")}
    assert ours == {family(name) for name in used if not name.startswith("process_")}


def test_the_dashboards_labels_are_the_exposed_ones(client):
    client.generate({"prompt": "a", "max_tokens": 2})
    labels = {name for one in _samples(client) for name in one.labels}
    for text in _expressions():
        named = re.findall(r"(?:by|sum by) \(([^)]*)\)", text)
        assert {one.strip() for group in named for one in group.split(",")} <= labels, text
        for selector in re.findall(r"\{([^}]*)\}", text):
            assert {part.split("=")[0].rstrip("~!") for part in selector.split(",")} <= labels
