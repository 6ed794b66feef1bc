from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from detinfer.errors import ConfigError
from detinfer.server.http.listener import bind

SCRIPT = Path(__file__).parents[1] / "support" / "serve_fake.py"


class Served:
    def __init__(self, load: float, token: float, *flags: str) -> None:
        command = [sys.executable, str(SCRIPT), str(load), str(token), "--port", "0"]
        command += flags or ("--no-access-log",)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.lines = [self.process.stderr.readline()]
        match = re.search(r"http://127\.0\.0\.1:\d+", self.lines[0])
        assert match, self.lines
        self.url = match[0]

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health")

    def wait_ready(self) -> str:
        assert self.process.stderr is not None
        self.lines.append(self.process.stderr.readline())
        return self.lines[-1]

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@contextlib.contextmanager
def served(load: float, token: float, *flags: str) -> Iterator[Served]:
    server = Served(load, token, *flags)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def _stream(url: str, tokens: int, into: list[str]) -> threading.Thread:
    """Read a stream on a thread of its own; returns once its first event is here."""
    first = threading.Event()

    def read() -> None:
        body = {"prompt": "a", "max_tokens": tokens, "stream": True}
        with httpx.stream("POST", f"{url}/generate", json=body, timeout=30) as response:
            for line in response.iter_lines():
                into.append(line)
                first.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert first.wait(10)
    return thread


def test_health_is_503_while_loading_then_one_ready_line():
    with served(1.5, 0.0) as server:
        response = server.health()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")
        line = server.wait_ready()
        assert server.health().status_code == 200
        assert server.url in line
        assert "fake-model" in line
        assert "detinfer-0.1.0-portable-1-0123456789ab" in line
        server.process.send_signal(signal.SIGTERM)
        status, errors = server.end()
        assert status == 143
        assert errors.count("\n") == 1


def test_term_lets_running_requests_finish_and_refuses_new_ones():
    with served(0.0, 0.05) as server:
        server.wait_ready()
        lines: list[str] = []
        reader = _stream(server.url, 30, lines)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert server.health().json()["error"]["code"] == "draining"
        refused = httpx.post(f"{server.url}/generate", json={"prompt": "b"})
        assert refused.status_code == 503
        reader.join(20)
        events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2].removeprefix("data: "))["finish_reason"] == "length"
        assert server.end()[0] == 143


@pytest.mark.parametrize("again", [True, False])
def test_second_signal_or_the_timeout_ends_running_requests_with_an_error(again):
    flags = () if again else ("--shutdown-timeout", "0.3")
    with served(0.0, 0.05, *flags) as server:
        server.wait_ready()
        lines: list[str] = []
        reader = _stream(server.url, 250, lines)
        start = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        if again:
            time.sleep(0.2)
            server.process.send_signal(signal.SIGINT)
        reader.join(20)
        status, errors = server.end()
        assert time.monotonic() - start < 10  # 250 tokens take longer
        assert status == 130
        assert "Traceback" not in errors
        events = [line for line in lines if line]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
        assert events[-1] == "data: [DONE]"


def test_signal_while_loading_stops_at_once():
    with served(60.0, 0.0) as server:
        assert server.health().status_code == 503
        server.process.send_signal(signal.SIGTERM)
        status, errors = server.end()
        assert status == 143
        assert "Traceback" not in errors


def test_each_line_is_json_of_its_own_when_asked_for_even_of_a_request_that_is_no_http():
    flags = ["--request-timeout", "0.3", "--api-key", "k", "--log-format", "json"]
    with served(0.0, 0.0, *flags) as server:
        ready = json.loads(server.wait_ready())["message"]
        assert f"try: curl -s {server.url}/generate -H " in ready
        assert '-H "authorization: Bearer $DETINFER_API_KEY"' in ready
        host, port = server.url.removeprefix("http://").split(":")
        key = {"authorization": "Bearer k"}
        httpx.post(f"{server.url}/generate", json={"prompt": "a", "max_tokens": 2}, headers=key)
        httpx.get(f"{server.url}/version")
        for sent, status in (
            (b"\0garbage\n\n", b"400"),
            (b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000, b"431"),
            (b"GET / HTTP/1.1\r\nA: b", b"408"),
        ):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(sent)
                assert connection.recv(4096)[9:12] == status
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.end()
        *lines, last = [json.loads(line) for line in errors.splitlines()]
        assert [line["status"] for line in lines] == [200, 401, 400, 431, 408]
        assert lines[0]["completion_tokens"] == 2
        assert last["message"].startswith("shutting down")


def test_what_goes_wrong_at_the_start_is_json_too_where_all_lines_are(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    keys.chmod(0o644)
    flags = ["--port", "0", "--log-format", "json", "--api-key-file", str(keys)]
    for load, more, message in (
        ("-1", [], "model 'nope': no such file or folder"),
        ("0", ["--metrics-prefix", "a:b"], "metrics_prefix: got 'a:b', expected letters"),
    ):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), load, "0", *flags, *more],
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert done.returncode == 2
        said = {line["level"]: line["message"] for line in lines}
        assert f"chmod o-r {keys}" in said["warning"]
        assert said["error"].startswith(message)


def test_model_that_cannot_be_loaded_is_one_line_and_status_2():
    with served(-1.0, 0.0) as server:
        status, errors = server.end()
        assert status == 2
        assert errors == "detinfer: error: model 'nope': no such file or folder\n"


def test_port_in_use_is_one_line_and_status_2_before_anything_loads():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, str(SCRIPT), "0", "0", "--port", port],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("detinfer: error: --port: cannot listen on 127.0.0.1 port")
    assert done.stderr.count("\n") == 1


def test_bind_takes_a_free_port_and_names_an_unknown_host():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="--host: got 'no such host'"):
        bind("no such host", 0)
