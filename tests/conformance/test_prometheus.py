"""Debian's own Prometheus scrapes the server, and the dashboard's expressions find something."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from debian_package import unpacked

pytestmark = pytest.mark.conformance

DASHBOARD = Path(__file__).parents[2] / "server" / "dashboards" / "grafana.json"
SECONDS = 60  # for what takes two or three


def _until(probe: Any, problem: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := probe()):
        assert time.monotonic() < deadline, problem
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def _prometheus(target: str, folder: Path) -> Iterator[httpx.Client]:
    """A client of a Prometheus that scrapes ``target`` several times a second."""
    scrape = {"job_name": "server", "static_configs": [{"targets": [target]}]}
    config = {"global": {"scrape_interval": "200ms"}, "scrape_configs": [scrape]}
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    command = [
        unpacked("prometheus") / "usr/bin/prometheus",
        f"--config.file={folder}/config.yml",
        f"--storage.tsdb.path={folder}/data",
        "--web.listen-address=127.0.0.1:0",
    ]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        listening = re.compile(r'msg="Listening on" address=(127\.0\.0\.1:\d+)')
        found = _until(lambda: listening.search(log.read_text()), log.read_text())
        with httpx.Client(base_url=f"http://{found[1]}") as client:
            yield client
    finally:
        process.kill()
        process.wait()


def _query(client: httpx.Client, expression: str) -> list[Any]:
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    result: list[Any] = answer["data"]["result"]
    return result


def _expressions() -> list[str]:
    """The dashboard's, with the variables that Grafana fills in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    texts = [target["expr"] for panel in panels for target in panel["targets"]]
    return [text.replace("$model_name", ".*").replace("$__rate_interval", "5m") for text in texts]


def _ask(server: str, prompt: str, grid: str) -> None:
    for route, body in (
        ("/generate", {"prompt": prompt, "max_tokens": 24}),
        ("/v1/solve", {"grid": grid}),
    ):
        assert httpx.post(f"{server}{route}", json=body, timeout=SECONDS).status_code == 200


def test_every_expression_of_the_dashboard_has_data(server, tmp_path):
    with _prometheus(server.removeprefix("http://"), tmp_path) as prometheus:
        # Whatever is to be a rate has to grow from one scrape to another.
        _until(lambda: _query(prometheus, "detinfer:http_requests_total"), "nothing scraped")
        for _ in range(2):
            prompt = "one two three four five six seven eight nine ten, " * 12
            _ask(server, prompt, "3.......5...2...4....5...61...5.31..")
        without_data = _expressions()

        def all_have_data() -> bool:
            # NaN is what a quotient of nothing and nothing is.
            without_data[:] = [
                text
                for text in without_data
                if all(one["value"][1] == "NaN" for one in _query(prometheus, text))
            ]
            return not without_data

        with contextlib.suppress(AssertionError):
            _until(all_have_data, "")
        assert without_data == []
        [target] = prometheus.get("/api/v1/targets").json()["data"]["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        # Types and help texts arrive under the names of their samples.
        known = prometheus.get("/api/v1/metadata").json()["data"]
        series = prometheus.get("/api/v1/label/__name__/values").json()["data"]
        ours = {re.sub(r"_(bucket|sum|count)$", "", one) for one in series if "detinfer" in one}
        assert ours
        assert ours <= known.keys()


def test_promtool_finds_nothing_but_the_colon(server):
    page = httpx.get(f"{server}/metrics").content
    command = [unpacked("prometheus") / "usr/bin/promtool", "check", "metrics"]
    done = subprocess.run(command, input=page, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    complaints = done.stdout.decode().splitlines()
    assert complaints  # of the colon: it has read them
    others = [one for one in complaints if not one.endswith(" should not contain ':'")]
    assert others == []
