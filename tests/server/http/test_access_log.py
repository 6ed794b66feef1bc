from __future__ import annotations

import asyncio
import json
import logging

import pytest
from fake_engine import FakeEngine
from loopback import serving

from detinfer import logs


@pytest.fixture
def lines(caplog):
    """The access log's lines so far, parsed."""
    caplog.set_level(logging.INFO, "detinfer.access")

    def parsed() -> list[dict]:
        records = [one for one in caplog.records if one.name == "detinfer.access"]
        for formatter in (logs._Text(), logs._Json()):
            texts = [formatter.format(one) for one in records]
            assert all(text.isascii() and text.isprintable() for text in texts)
        found = [json.loads(text) for text in texts]
        assert {line.pop("level") for line in found} <= {"info", "debug"}
        assert all(line.pop("logger") == "detinfer.access" for line in found)
        return found

    return parsed


def test_an_answer_is_one_line_with_its_tokens_and_digest(client, lines):
    response = client.generate({"prompt": "abc", "max_tokens": 4}, headers={"x-request-id": "me"})
    [line] = lines()
    assert line.pop("time").endswith("Z")
    assert line.pop("duration_ms") >= 0
    assert line == {
        "request_id": "me",
        "method": "POST",
        "path": "/generate",
        "status": 200,
        "client_disconnected": False,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "finish_reason": "length",
        "deterministic": True,
        "digest": response.json()["digest"],
    }


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_are_joined_in_their_order(client, lines, stream):
    body = {"prompt": ["ab", "c", "def"], "max_tokens": 2, "deterministic": False}
    whole = client.generate(body)
    client.generate({**body, "stream": stream})
    line = lines()[-1]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (6, 6)
    assert line["finish_reason"] == "length, length, length"
    assert line["deterministic"] is False
    assert line["digest"] == whole.headers["x-detinfer-digest"]


def test_refusals_are_logged_with_their_status(make_client, lines):
    client = make_client(FakeEngine(queue_full=True), api_keys=("k",))
    key = {"authorization": "Bearer k"}
    client.get("/version")
    client.get("/nowhere", headers=key)
    client.get("/generate", headers=key)
    client.generate({}, headers=key)
    client.generate({"prompt": "a"}, headers=key)
    client.generate(b" " * (5 << 20), headers=key)
    assert [line["status"] for line in lines()] == [401, 404, 405, 400, 429, 413]
    assert not any("digest" in line or line["client_disconnected"] for line in lines())


def test_engine_failures_are_logged_with_what_was_generated(make_client, lines):
    make_client(FakeEngine(fail_after=2)).generate({"prompt": "a"})
    make_client(FakeEngine(fail_after=2)).generate({"prompt": "a", "stream": True})
    make_client(FakeEngine(die_after=1)).generate({"prompt": "a"})
    assert [line["status"] for line in lines()] == [500, 200, 503]
    assert {line["finish_reason"] for line in lines()} == {"error"}
    assert {line["digest"] for line in lines()[2:]} == {None}


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_are_logged_only_at_level_debug_or_when_they_fail_in_their_own_way(
    make_client, lines, caplog, path
):
    for client in (make_client(), make_client(loading=True)):
        client.get(path)
    assert lines() == []
    client.request("POST", path)
    assert [line["status"] for line in lines()] == [405]
    caplog.set_level(logging.DEBUG, "detinfer.access")
    client.get(path)
    assert len(lines()) == 2


def test_an_unforeseen_error_is_logged_as_the_500_it_became(make_client, lines):
    class Broken(FakeEngine):
        def generate(self, *args, **options):
            raise KeyError("secret")

    make_client(Broken()).generate({"prompt": "a"})
    assert lines()[-1]["status"] == 500


def test_nothing_a_client_sends_can_forge_or_break_a_line(lines):
    async def scenario() -> None:
        async with serving(FakeEngine()) as (port, _):
            paths = [
                "/a%0a%0d{%22status%22:200}",
                "/a%22,%22status%22:200,%22b%22:%22",
                "/%e2%80%a8%c2%85%1b%5b31m",
                "/%ff",
                "/" + "a" * 50_000,
            ]
            for path in paths:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                head = f'GET {path} HTTP/1.1\r\nHost: t\r\nX-Request-Id: a","b\r\n'
                writer.write(head.encode() + b"Connection: close\r\n\r\n")
                await asyncio.wait_for(reader.read(), 5)
                writer.close()

    asyncio.run(scenario())
    assert len(lines()) == 5
    assert {line["status"] for line in lines()} == {404}
    assert all(len(json.dumps(line)) < 2500 for line in lines())


def test_prompts_answers_keys_and_queries_are_not_logged(make_client, lines, caplog):
    client = make_client(api_keys=("sesame-key",))
    for stream in (False, True):
        client.generate(
            {"prompt": "my-secret-prompt", "stop": "my-secret-stop", "stream": stream},
            headers={"authorization": "Bearer sesame-key"},
        )
    client.get("/version?api_key=query-secret", headers={"authorization": "Bearer wrong-secret"})
    client.generate({"prompt": 5}, headers={"authorization": "Bearer sesame-key"})
    assert len(lines()) == 4
    for secret in ("secret", "sesame", "api_key"):
        assert secret not in caplog.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("delay", [0.02, 60])
def test_a_client_that_went_away_is_named_so(lines, stream, delay):
    async def scenario() -> None:
        engine = FakeEngine(delay=delay)
        async with serving(engine) as (port, _):
            body = json.dumps({"prompt": "a", "max_tokens": 200, "stream": stream})
            head = f"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write((head + body).encode())
            async with asyncio.timeout(5):
                while not engine.running:
                    await asyncio.sleep(0.01)
                if stream and delay < 1:
                    await reader.readuntil(b"data: ")
                writer.close()
                while not lines():
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())
    [line] = lines()
    assert line["client_disconnected"] is True
    assert line["status"] == (200 if stream and delay < 1 else 499)
    assert line["finish_reason"] == "abort"


def test_what_is_no_http_is_logged_without_a_path(lines):
    async def scenario() -> None:
        async with serving(FakeEngine()) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\0garbage\n\n")
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            [line] = lines()
            assert (line["method"], line["path"], line["status"]) == (None, None, 400)
            assert f"x-request-id: {line['request_id']}".encode() in answer

    asyncio.run(scenario())
