"""A check of servers of other makes: what they do is told, and how they fail is counted."""

from __future__ import annotations

import json
import re
import socket

import foreign_servers as foreign
import pytest
from foreign_servers import serving_foreign

from detinfer import cli
from detinfer.check.ladder import LadderCheck, server_subject
from detinfer.check.openai_answer import read_answer, read_events
from detinfer.check.openai_subject import OpenAISubject
from detinfer.errors import ConfigError, DetinferError


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("detinfer.check.openai_subject._PAUSE", 0.001)
    monkeypatch.setattr("detinfer.check.arrivals._STEP", 0.001)
    monkeypatch.delenv("DETINFER_API_KEY", raising=False)


def check(url, runs=12, timeout=10.0):
    subject = server_subject(url, 8, None, timeout)
    assert isinstance(subject, OpenAISubject)
    checking = LadderCheck(subject, subject.targets(8), runs=runs, seed=3)
    return subject, checking.run()


@pytest.mark.parametrize(
    ("kind", "route", "told", "answers"),
    [
        (foreign.Foreign, "/v1/completions", "told", "whole"),
        (foreign.NoLogprobs, "/v1/completions", "not told", "whole"),
        (foreign.ChatOnly, "/v1/chat/completions", "told", "whole"),
        (foreign.StreamsOnly, "/v1/completions", "told", "streamed"),
        (foreign.RefusesLogprobs, "/v1/completions", "not told", "whole"),
    ],
)
def test_a_sound_server_is_asked_as_it_can_be_and_is_reproducible(kind, route, told, answers):
    with serving_foreign(kind) as url:
        subject, result = check(url)
    assert subject.parts["route"] == route
    assert subject.parts["log-probabilities"] == told
    assert subject.parts["answers"] == answers
    assert result.reproducible, result.first_divergence
    assert (result.runs, dict(result.troubles)) == (48, {})
    [first, *_] = result.prompts
    if told == "told":
        assert float.fromhex(first.expected.logprobs[0].logprob) < 0
        assert first.expected.token_ids == tuple(one.token_id for one in first.expected.logprobs)
    else:
        assert first.expected.logprobs is None
        assert first.expected.unit == "character"
    rungs = {rung.name: rung for rung in result.ladder}
    assert rungs["repeats alone"].counts.runs >= 12
    assert rungs["batch sizes"].counts.runs >= 12
    assert rungs["under load"].counts.runs >= 16
    assert "not ours to restart" in rungs["restarts"].told


def test_a_server_that_follows_its_load_is_caught_from_the_rung_on_that_shows_it(capsys, tmp_path):
    path = tmp_path / "r.json"
    command = ["check", "--runs", "12", "--concurrency", "4", "--max-tokens", "6", "--seed", "1"]
    with serving_foreign(foreign.Drifts) as url:
        assert cli.main([*command, "--url", url, "--report", str(path)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"ladder: repeats alone: 1 digest \(\d+ runs\); batch sizes: 2 digests", out)
    assert "token 4 of the answer is the first that differs" in out
    assert "the answers part at token 4" in out
    assert "negative control: not possible" in out
    assert "restarts: not ours to restart; another machine: --compare A.json B.json" in out
    report = json.loads(path.read_text())
    assert report["fingerprint"]["model"] == "other"
    assert report["shrunk"]["families"] == ["batch size"]
    parting = report["shrunk"]["parting"]
    assert (parting["position"], parting["load"]["token"]) == (3, " ff")
    assert parting["alone"]["logprob"] < 0
    assert float.fromhex(parting["alone"]["exact"][0]) == parting["alone"]["logprob"]


@pytest.mark.parametrize(
    ("kind", "trouble"),
    [
        (foreign.Now500, "status 500"),
        (foreign.Breaks, "connection lost"),
        (foreign.Breaks, "not an answer"),
    ],
)
def test_failures_now_and_then_are_asked_again_and_counted(kind, trouble, capsys):
    with serving_foreign(kind) as url:
        _, result = check(url)
        assert result.reproducible
        assert result.troubles[trouble] >= 1
        assert cli.main(["check", "--url", url, "--runs", "4", "--max-tokens", "4"]) == 0
    if kind is foreign.Now500:
        assert "the server's failures, each asked again: status 500: " in capsys.readouterr().out


def test_an_answer_that_does_not_come_is_asked_for_again():
    with serving_foreign(foreign.Hangs) as url:
        _, result = check(url, runs=4, timeout=0.5)
    assert result.reproducible
    assert result.troubles["timed out"] == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (foreign.Always500, "asked 4 times, /v1/completions: status 500: <html>no</html>"),
        (foreign.NoModels, "neither a detinfer server nor an OpenAI-compatible one"),
        (foreign.WantsKey, "no key for it; set DETINFER_API_KEY"),
    ],
)
def test_a_server_that_goes_on_failing_gives_no_verdict(kind, words, capsys):
    with serving_foreign(kind) as url:
        assert cli.main(["check", "--url", url, "--runs", "4", "--max-tokens", "4"]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("detinfer: error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "reproducible" not in captured.out


def test_a_key_and_a_base_address_with_its_version_are_taken(monkeypatch):
    monkeypatch.setenv("DETINFER_API_KEY", "sesame")
    with serving_foreign(foreign.WantsKey) as url:
        command = ["check", "--url", f"{url}/v1", "--runs", "2", "--max-tokens", "4"]
        assert cli.main([*command, "--prompt", "a"]) == 0


def test_no_server_and_one_that_says_nothing_cost_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert cli.main(["check", "--url", url, "--timeout", "1"]) == 2
        assert "cannot be reached (timed out)" in capsys.readouterr().err
    assert cli.main(["check", "--url", url]) == 2
    assert "cannot be reached (Connection refused)" in capsys.readouterr().err


def test_the_fast_mode_of_another_make_is_refused():
    with serving_foreign(foreign.Foreign) as url:
        subject = OpenAISubject(url)
        with pytest.raises(ConfigError, match="runs without the fast mode"):
            LadderCheck(subject, subject.targets(4), modes=("fast",))


@pytest.mark.parametrize(
    "value", [None, [], {}, {"choices": []}, {"choices": [{"text": "a"}]}, {"choices": [{}, {}]}]
)
def test_what_is_no_answer_is_told(value):
    with pytest.raises(ValueError, match="no answer of an OpenAI-compatible server"):
        read_answer(value)


@pytest.mark.parametrize("lines", [[], [b"data: [DONE]"], [b"data: {"], [b'data: {"error": "x"}']])
def test_what_is_no_stream_is_told(lines):
    with pytest.raises(ValueError, match=r"a stream without an end|no stream of"):
        read_events(lines)


def test_the_last_bit_of_a_log_probability_makes_another_answer():
    def answer(value):
        told = {"tokens": ["a"], "token_logprobs": [value], "top_logprobs": None}
        choice = {"text": "a", "finish_reason": "stop", "logprobs": told}
        return read_answer(json.loads(json.dumps({"choices": [choice]})))

    assert answer(-0.1) == answer(-0.1)
    assert answer(-0.1) != answer(-0.1 * (1 + 2**-52))
    assert answer(-0.1).digest != answer(-0.1 * (1 + 2**-52)).digest
    assert answer(None) == answer(None)


def test_detinfer_error_is_what_a_full_run_of_failures_raises():
    with serving_foreign(foreign.Always500) as url, pytest.raises(DetinferError, match="4 times"):
        check(url)
