"""A check of a server: the same verdicts over HTTP, and every way a server can be the wrong one."""

import asyncio
import contextlib
import dataclasses
import http.server
import json
import socket
import threading
import time

import pytest
from fake_engine import INFO, FakeEngine
from loopback import serving

from detinfer import cli
from detinfer.check import Check, Load, ServerSubject, Target, default_targets
from detinfer.check.client import Client
from detinfer.errors import ConfigError, DetinferError
from detinfer.params import SamplingParams

TARGETS = [
    Target("the same", SamplingParams(max_tokens=6)),
    Target((1, 2, 3), SamplingParams(max_tokens=5, temperature=1.0, seed=4)),
]


@contextlib.contextmanager
def served(engine, **settings):
    """The real application on a socket, in a thread; gives its address."""
    ready, stop, found = threading.Event(), threading.Event(), []

    async def main():
        async with serving(engine, **settings) as (port, _):
            found.append(f"http://127.0.0.1:{port}")
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    try:
        assert ready.wait(20)
        deadline = time.monotonic() + 20
        port = int(found[0].rsplit(":", 1)[1])
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
        yield found[0]
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


class Remembering(FakeEngine):
    """Keeps the parameters of every request."""

    def __init__(self, **options):
        super().__init__(**options)
        self.asked = []
        self.most = 0

    async def generate(self, prompt_token_ids, params, request_id, **options):
        self.asked.append((prompt_token_ids, params))
        async for output in super().generate(prompt_token_ids, params, request_id, **options):
            self.most = max(self.most, len(self.running))
            yield output


class Leaky(Remembering):
    """Its digests tell whether anything else was running."""

    async def generate(self, *request, **options):
        async for output in super().generate(*request, **options):
            if output.digest and len(self.running) > 1:
                output = dataclasses.replace(output, digest="f" * 64)
            yield output


def check(url, **options):
    options = {"runs": 12, "seed": 3, **options}
    return Check(ServerSubject(url, 8), TARGETS, **options)


def test_a_sound_server_is_reproducible_under_concurrent_loads():
    engine = Remembering(delay=0.001)
    with served(engine) as url:
        result = check(url, modes=("deterministic", "fast")).run()
    assert result.reproducible
    assert (result.runs, result.source) == (24, url)
    assert result.fingerprint == INFO.system_fingerprint
    assert result.by_mode["fast"].runs == 24
    # Runs and neighbours really were there together, and some neighbours hung up.
    assert engine.most > 2
    targets = [one for one in engine.asked if one[0] in (list(b"the same"), [1, 2, 3])]
    assert len(targets) >= 2 * (24 + 2)
    assert len(engine.asked) > len(targets)
    assert len({params for _, params in engine.asked}) > 8
    assert not engine.running


def test_answers_are_those_of_the_server():
    with served(FakeEngine()) as url:
        result = check(url).run()
    texts = [prompt.expected.text for prompt in result.prompts]
    assert [len(text) for text in texts] == [6, 5]
    assert all(prompt.expected.finish_reason == "length" for prompt in result.prompts)
    assert [prompt.expected.token_ids for prompt in result.prompts] == [
        tuple(text.encode()) for text in texts
    ]


class Inexact(Remembering):
    """Beside others its log-probabilities end in other bits, and its digests do not."""

    async def generate(self, *request, **options):
        async for output in super().generate(*request, **options):
            if output.logprobs and len(self.running) > 1:
                one = output.logprobs[-1]
                changed = one._replace(logprob=one.logprob * (1 + 2**-52))
                output = dataclasses.replace(output, logprobs=[changed])
            yield output


def test_log_probabilities_are_compared_over_http():
    asking = Target("the same", SamplingParams(max_tokens=6, logprobs=2))

    def found(engine):
        with served(engine) as url:
            return Check(ServerSubject(url, 8), [asking], runs=12, seed=3).run()

    result = found(Remembering(delay=0.001))
    assert result.reproducible
    assert result.prompts[0].expected.logprobs[0].logprob == (-0.5).hex()
    result = found(Inexact(delay=0.001))
    assert not result.reproducible
    assert result.unique_digests == 1 < result.unique_outputs


def test_a_server_without_log_probabilities_is_told_apart():
    asking = Target("a", SamplingParams(logprobs=0))
    for answer in (GOOD_ANSWER, {**GOOD_ANSWER, "logprobs": None}):
        with (
            other_server(GOOD_INFO, answer) as url,
            pytest.raises(DetinferError, match="/generate answered without log-probabilities"),
        ):
            Check(ServerSubject(url), [asking], runs=1).run()


def test_a_server_that_leaks_is_caught():
    with served(Leaky(delay=0.001)) as url:
        result = check(url).run()
    assert not result.reproducible
    assert result.unique_digests == 2
    assert result.unique_outputs == 1
    assert result.first_divergence.got.digest == "f" * 64
    assert result.first_divergence.load.placement is None


def test_the_command_checks_a_server(capsys, monkeypatch, tmp_path):
    path = tmp_path / "r.json"
    with served(FakeEngine(), api_keys=("sesame",)) as url:
        command = ["check", "--url", url, "--runs", "5", "--max-tokens", "4", "--prompt", "abc"]
        monkeypatch.delenv("DETINFER_API_KEY", raising=False)
        assert cli.main(command) == 2
        assert "no API key was given, expected 'Bearer KEY'; set DETINFER_API_KEY" in (
            capsys.readouterr().err
        )
        monkeypatch.setenv("DETINFER_API_KEY", "wrong")
        assert cli.main(command) == 2
        assert "the API key is not known" in capsys.readouterr().err
        monkeypatch.setenv("DETINFER_API_KEY", "sesame")
        assert cli.main([*command, "--report", str(path)]) == 0
        report = json.loads(path.read_text())
        assert (report["source"], report["runs"]) == (url, 5)
        assert "sesame" not in path.read_text()
    with served(Leaky(delay=0.001)) as url:
        assert (
            cli.main(["check", "--url", url, "--runs", "20", "--prompt", "a", "--prompt", "b"]) == 1
        )


def test_the_commands_own_targets_are_asked_for_as_they_are():
    engine = Remembering()
    engine.info = dataclasses.replace(INFO, max_model_len=2400, num_pages=40)
    with served(engine) as url:
        subject = ServerSubject(url, 8)
        targets = default_targets(subject.bounds, max_tokens=4)
        assert Check(subject, targets, runs=20, seed=3).run().reproducible
    asked = {params for _, params in engine.asked}
    assert {target.params for target in targets} <= asked
    # Some are there first, and fast.
    fast = {dataclasses.replace(target.params, deterministic=False) for target in targets}
    assert fast & asked


def test_a_server_without_the_fast_mode_is_not_asked_for_it():
    engine = FakeEngine()
    engine.info = dataclasses.replace(INFO, allow_fast=False)
    with (
        served(engine) as url,
        pytest.raises(ConfigError, match=f"got fast, but {url} runs without the fast mode"),
    ):
        check(url, modes=("fast",))


def test_a_prompt_that_the_server_refuses_is_named():
    with served(FakeEngine()) as url:
        subject = ServerSubject(url)
        long = Target("x" * 300, SamplingParams(max_tokens=4))
        with pytest.raises(DetinferError, match=f"prompt 1 of 1: {url}: .* prompt: got 300 tokens"):
            Check(subject, [long], runs=1).run()


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (FakeEngine(fail_after=2), "NaN at token 3"),
        (FakeEngine(die_after=2), "the engine process ended"),
    ],
)
def test_a_server_that_fails_gives_no_verdict(engine, words):
    with served(engine) as url, pytest.raises(DetinferError, match=words):
        check(url).run()


def test_a_full_queue_is_asked_again():
    class Full(FakeEngine):
        refused = 0

        async def generate(self, prompt_token_ids, params, request_id, **options):
            self.queue_full = self.refused < 3
            self.refused += self.queue_full
            async for output in super().generate(prompt_token_ids, params, request_id, **options):
                yield output

    engine = Full()
    with served(engine) as url, pytest.MonkeyPatch.context() as patch:
        waits = []
        patch.setattr("detinfer.check.client.time.sleep", waits.append)
        subject = ServerSubject(url)  # which asks whether grammars compile
        engine.refused, waits[:] = 0, []
        assert subject.play(Load.alone(0, TARGETS[0]))[0].text
    # The server said three seconds each time.
    assert waits[-3:] == [3.0, 3.0, 3.0]


def test_no_server_there():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DetinferError, match=r"cannot be reached \(Connection refused\)"):
        ServerSubject(f"http://127.0.0.1:{port}")


GOOD_INFO = {
    "system_fingerprint": "detinfer-1",
    "engine": {"vocab_size": 97, "max_model_len": 64, "num_pages": 8, "allow_fast": True},
}
GOOD_ANSWER = {
    "output_ids": [1],
    "text": "x",
    "finish_reason": "length",
    "digest": "d" * 64,
    "deterministic": True,
    "system_fingerprint": "detinfer-1",
}


@contextlib.contextmanager
def other_server(info, answer, status=200):
    """A server that is not ours: fixed answers to GET and POST."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, value):
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.reply(info)

        def do_POST(self):
            self.reply(answer)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize(
    ("info", "answer", "status", "words"),
    [
        (b"<html>", b"", 200, "not a detinfer server .*/server_info answered 200, not our JSON"),
        ({"detail": "Not Found"}, b"", 404, "not a detinfer server .*/server_info answered 404"),
        ({"model": "llama"}, b"", 200, "not a detinfer server .*/server_info lacks"),
        ([1], b"", 200, "not a detinfer server .*/server_info lacks"),
        (GOOD_INFO, {"text": "hello"}, 200, "not a detinfer server .*without a digest"),
        (GOOD_INFO, {**GOOD_ANSWER, "digest": ""}, 200, "ended with length without a digest"),
        (GOOD_INFO, {**GOOD_ANSWER, "finish_reason": "abort"}, 200, "an answer ended with abort"),
        (GOOD_INFO, {**GOOD_ANSWER, "deterministic": False}, 200, "asked for deterministic True"),
        (
            GOOD_INFO,
            {**GOOD_ANSWER, "system_fingerprint": "detinfer-2"},
            200,
            "fingerprint changed from detinfer-1 to detinfer-2",
        ),
        (
            {"error": {"message": "the model is loading", "code": "loading"}},
            b"",
            503,
            r"the model is loading \(status 503\)",
        ),
    ],
)
def test_a_server_that_is_not_ours_is_told_apart(info, answer, status, words):
    with (
        other_server(info, answer, status) as url,
        pytest.raises(DetinferError, match=words) as caught,
    ):
        Check(ServerSubject(url), TARGETS[:1], runs=2).run()
    assert "\n" not in str(caught.value)


def test_the_other_server_would_pass_with_good_answers():
    with other_server(GOOD_INFO, GOOD_ANSWER) as url:
        result = Check(ServerSubject(url), TARGETS[:1], runs=2, seed=1).run()
    assert result.reproducible


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "http://", "http://x:port", "http://u@x", "http://x?y=1"]
)
def test_bad_addresses(url):
    with pytest.raises(ConfigError, match="--url: got"):
        Client(url)


def test_a_key_that_no_header_can_carry():
    with pytest.raises(ConfigError, match="DETINFER_API_KEY: expected printable ASCII"):
        Client("http://x", "a\nb")
