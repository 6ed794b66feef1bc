"""The server and its engine's process: exact metrics, and what happens when either dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

SCRIPT = Path(__file__).parents[1] / "support" / "serve_process.py"


class Served:
    """A server in a process group of its own.

    Attributes:
        url: where it listens.
        first_lines: what it wrote until it was ready.
        engine: the engine's process id.
    """

    def __init__(self, factory: str, *flags: str, open_files: int | None = None) -> None:
        command = [sys.executable, str(SCRIPT), factory, *flags]
        if "--access-log" not in flags:
            command.append("--no-access-log")
        if open_files is not None:
            command = ["bash", "-c", f'ulimit -Sn {open_files} && exec "$@"', "bash", *command]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        self.first_lines = [self.process.stderr.readline()]
        match = re.search(r"http://127\.0\.0\.1:\d+", self.first_lines[0])
        assert match
        self.url = match[0]
        self.engine = int(self.process.stdout.readline())
        while "ready on" not in self.first_lines[-1]:
            self.first_lines.append(self.process.stderr.readline())
            assert self.first_lines[-1]
        self.first_lines = [line.rstrip("\n") for line in self.first_lines]

    def metrics(self) -> dict[str, float]:
        """Values by name and labels, but the model's."""
        text = httpx.get(f"{self.url}/metrics").text
        return {
            one.name
            + str([v for k, v in sorted(one.labels.items()) if k != "model_name"]): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }


@contextlib.contextmanager
def served(factory: str, *flags: str, open_files: int | None = None) -> Iterator[Served]:
    server = Served(factory, *(flags or ("--port", "0")), open_files=open_files)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def _wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


BODY = {"prompt": "abcdef" * 30, "max_tokens": 150, "ignore_eos": True}


async def _answers(url: str, meanwhile) -> list[httpx.Response]:
    """A whole answer, a list of them and a stream, with ``meanwhile`` called while they run."""
    bodies = [BODY, {**BODY, "prompt": ["ab", "cd"]}, {**BODY, "stream": True}]
    async with httpx.AsyncClient(timeout=30) as client:
        tasks = [asyncio.create_task(client.post(f"{url}/generate", json=b)) for b in bodies]
        async with asyncio.timeout(20):
            running = 0
            while running < 4:
                stats = (await client.get(f"{url}/server_info")).json()["stats"]
                running = stats.get("running", 0)
                await asyncio.sleep(0.1)
        meanwhile()
        return await asyncio.gather(*tasks)


def _errors(responses: list[httpx.Response]) -> list[dict]:
    """The error object of each, the stream's from the event before its end."""
    *whole, stream = responses
    assert [response.status_code for response in responses] == [503, 503, 200]
    events = [line for line in stream.text.split("\n\n") if line]
    assert events[-1] == "data: [DONE]"
    return [response.json()["error"] for response in whole] + [
        json.loads(events[-2].removeprefix("data: "))["error"]
    ]


DEATH = "the engine process was ended by SIGKILL, as a system does that runs out of memory"


def test_metrics_are_the_engines_own_counts_and_survive_its_death():
    with served("make_slow_engine", "--port", "0", "--no-exit-on-engine-death") as server:
        zero = server.metrics()
        assert zero["detinfer:generation_tokens_total[]"] == 0
        assert zero["detinfer:kv_cache_usage_perc[]"] == 0
        for body in (
            {**BODY, "max_tokens": 3},
            {**BODY, "max_tokens": 4},  # its prompt's pages are cached
            {**BODY, "max_tokens": 5, "deterministic": False, "stream": True},
        ):
            assert httpx.post(f"{server.url}/generate", json=body).status_code == 200
        stats = httpx.get(f"{server.url}/server_info").json()["stats"]
        got = server.metrics()
        for name, key in {
            "prompt_tokens_total": "prompt_tokens",
            "generation_tokens_total": "generated_tokens",
            "prefix_cache_queries_total": "prefix_queries",
            "prefix_cache_hits_total": "prefix_hit_tokens",
            "iteration_tokens_count": "steps",
        }.items():
            assert got[f"detinfer:{name}[]"] == stats[key] > 0, name
        assert got["detinfer:generation_tokens_total[]"] == 12
        assert got["detinfer:prefix_cache_hits_total[]"] == 128
        assert got["detinfer:steps_total['deterministic']"] == stats["deterministic_steps"] > 0
        assert got["detinfer:steps_total['fast']"] == stats["fast_steps"] > 0
        assert got["detinfer:requests_total['deterministic']"] == 2
        assert got["detinfer:requests_total['fast']"] == 1
        assert got["detinfer:request_success_total['length']"] == 3
        assert got["detinfer:request_queue_time_seconds_count[]"] == 3
        assert got["detinfer:time_to_first_token_seconds_count[]"] == 3
        assert got["detinfer:inter_token_latency_seconds_count[]"] == 9
        assert 9 * 0.02 <= got["detinfer:inter_token_latency_seconds_sum[]"] < 5
        assert got["detinfer:num_requests_running[]"] == 0
        assert got["detinfer:kv_cache_usage_perc[]"] == 0

        busy: list[dict[str, float]] = []

        def kill() -> None:
            busy.append(server.metrics())
            os.kill(server.engine, signal.SIGKILL)

        errors = _errors(asyncio.run(_answers(server.url, kill)))
        assert busy[0]["detinfer:num_requests_running[]"] == 4
        assert 0 < busy[0]["detinfer:kv_cache_usage_perc[]"] < 1
        assert {error["code"] for error in errors} == {"engine_dead"}
        assert {error["message"] for error in errors} == {DEATH}
        # The server lives on, to say so.
        said = server.process.stderr.readline()
        assert said.endswith(f" ERROR detinfer: {DEATH}; answering 503 until restarted\n")
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, health.json()["error"]["code"]) == (503, "dead")
        assert httpx.post(f"{server.url}/generate", json=BODY).status_code == 503
        got = server.metrics()
        assert got["detinfer:num_requests_running[]"] == 0
        assert got["detinfer:kv_cache_usage_perc[]"] == 0
        assert got["detinfer:request_success_total['error']"] == 4
        assert got["detinfer:http_requests_total['POST', '/generate', '503']"] == 3
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 143


def test_when_the_engine_dies_those_who_wait_are_answered_and_the_server_ends_with_1():
    with served("make_slow_engine") as server:
        errors = _errors(
            asyncio.run(_answers(server.url, lambda: os.kill(server.engine, signal.SIGKILL)))
        )
        assert {error["code"] for error in errors} == {"engine_dead"}
        _, said = server.process.communicate(timeout=20)
        assert server.process.returncode == 1
        assert said.count("\n") == 1
        assert said.endswith(
            f" ERROR detinfer: {DEATH}; answering those who wait, then exiting with status 1\n"
        )


LINES = {
    "text": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ [\w.]+: \S.*|  .*"),
    "json": re.compile(r'\{"time": "[^"]+Z", "level": "[a-z]+", "logger": "[\w.]+", "\w+": .*\}'),
}


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_every_line_of_both_processes_has_the_one_format(log_format):
    flags = ["--port", "0", "--access-log", "--log-format", log_format]
    with served("make_talking_engine", *flags) as server:
        assert httpx.post(f"{server.url}/generate", json=BODY).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        _, said = server.process.communicate(timeout=20)
    lines = [*server.first_lines, *said.splitlines()]
    assert [line for line in lines if not LINES[log_format].fullmatch(line)] == []
    together = "\n".join(lines)
    for what in (
        "loading the model",
        "ready on",
        "a thing printed",
        "UserWarning: a warning",
        "an error",
    ):
        assert together.count(what) == 1, what
    assert "not worth a line" not in together
    assert together.count("/generate") == 2  # the ready line's, and the access log's
    assert together.count("/health") == 1  # the loading line's


def test_a_log_that_nobody_reads_delays_no_answer():
    with served("make_engine", "--port", "0", "--access-log") as server:
        # Far more than a pipe and the queue before it hold, while stderr is not read.
        path = "/" + "a" * 250
        with httpx.Client(base_url=server.url) as client:
            assert {client.get(path).status_code for _ in range(400)} == {404}
        body = {**BODY, "max_tokens": 2}
        assert httpx.post(f"{server.url}/generate", json=body).status_code == 200


@pytest.fixture
def open_files() -> Iterator[int]:
    """A soft limit that the servers' connections do not fit in; the tests' own get room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield 300
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("clients", "stream"), [(1000, False), (512, True)])
def test_what_load_tools_ask_for_at_once_waits_its_turn(open_files, clients, stream):
    asked = {"prompt": "abc", "max_tokens": 2, "ignore_eos": True, "stream": stream}
    body = json.dumps(asked).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"Connection: close\r\n\r\n" + body

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer

    async def all_at_once(port: int) -> list[bytes]:
        return await asyncio.gather(*(ask(port) for _ in range(clients)))

    with served("make_engine", "--port", "0", open_files=open_files) as server:
        answers = asyncio.run(all_at_once(int(server.url.rpartition(":")[2])))
        assert {answer[9:12] for answer in answers} == {b"200"}
        assert all(b'"finish_reason":"length"' in answer for answer in answers)
        assert server.metrics()["detinfer:request_success_total['length']"] == clients


def test_clients_that_leave_free_every_page_streaming_or_not():
    with served("make_slow_engine") as server:

        async def leave(stream: bool) -> None:
            body = {**BODY, "prompt": [BODY["prompt"], "ab"], "n": 2, "stream": stream}
            async with httpx.AsyncClient() as client:
                task = asyncio.create_task(client.post(f"{server.url}/generate", json=body))
                await _until(client, lambda stats: stats.get("running", 0) == 4)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        async def _until(client: httpx.AsyncClient, condition) -> None:
            async with asyncio.timeout(10):
                while not condition(
                    (await client.get(f"{server.url}/server_info")).json()["stats"]
                ):
                    await asyncio.sleep(0.02)

        async def scenario() -> None:
            for stream in (False, True):
                await leave(stream)
                async with httpx.AsyncClient() as client:
                    await _until(
                        client,
                        lambda stats: (
                            stats["open"] == stats["running"] == stats["waiting"] == 0
                            and stats["free_pages"] == stats["num_pages"]
                        ),
                    )

        asyncio.run(scenario())
        assert server.metrics()["detinfer:request_success_total['abort']"] == 8


def test_requests_that_a_shutdown_does_not_wait_for_end_with_a_clear_error():
    with served("make_slow_engine", "--port", "0", "--shutdown-timeout", "0.2") as server:
        errors = _errors(
            asyncio.run(_answers(server.url, lambda: server.process.send_signal(signal.SIGTERM)))
        )
        assert {error["code"] for error in errors} == {"draining"}
        assert {error["message"] for error in errors} == {"the server is shutting down"}
        assert server.process.wait(20) == 143
        _wait_gone(server.engine)


@pytest.mark.slow
def test_a_killed_server_takes_its_engine_along_and_its_successor_gives_the_same_digests():
    with served("make_slow_engine") as server:
        digest = httpx.post(f"{server.url}/generate", json=BODY, timeout=30).json()["digest"]
        with contextlib.suppress(httpx.HTTPError):
            asyncio.run(_answers(server.url, server.process.kill))
        server.process.wait(20)
        with served("make_slow_engine", "--port", server.url.rpartition(":")[2]) as successor:
            assert successor.url == server.url
            again = httpx.post(f"{server.url}/generate", json=BODY, timeout=30).json()
            assert again["digest"] == digest
        _wait_gone(server.engine)


def test_sampling_that_the_model_suggests_is_said_to_be_left_alone():
    with served("make_engine_with_suggestions") as server:
        assert server.process.stderr is not None
        line = server.process.stderr.readline()
        info = httpx.get(f"{server.url}/server_info").json()
    assert line.endswith(
        " INFO detinfer: generation_config.json suggests temperature 0.6, bad_words_ids "
        "[[7], [7], [7], [7], [7], [7], [7], [7],: not applied, requests decide\n"
    )
    assert info["generation_defaults_not_applied"]["temperature"] == 0.6
