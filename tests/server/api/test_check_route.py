"""``POST /check``: the server compares its own answers, and counts what differs."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import httpx
import pytest
from fake_engine import INFO, FakeEngine
from loopback import serving
from streams import events

BODY = {"prompt": "the same", "runs": 12, "max_tokens": 5, "seed": 3}


class Leaky(FakeEngine):
    """Its digests tell whether anything else was running."""

    async def generate(self, *request, **options):
        async for output in super().generate(*request, **options):
            if output.digest and len(self.running) > 1:
                output = dataclasses.replace(output, digest="f" * 64)
            yield output


def post(client, body, **options):
    return client.request("POST", "/check", json=body, **options)


def mismatches(client):
    lines = client.get("/metrics").text.splitlines()
    [line] = [x for x in lines if x.startswith("detinfer:check_mismatches_total{")]
    return float(line.split()[-1])


def test_a_sound_engine_gives_one_digest(make_client):
    engine = FakeEngine(delay=0.001)
    client = make_client(engine)
    response = post(client, {**BODY, "modes": ["deterministic", "fast"]})
    assert response.status_code == 200
    *progress, result = events(response.text)
    assert [one["progress"]["runs"] for one in progress][-1] == 12
    assert {one["progress"]["mode"] for one in progress} == {"deterministic", "fast"}
    assert (result["reproducible"], result["runs"], result["unique_digests"]) == (True, 12, 1)
    assert result["first_divergence"] is None
    assert list(result["by_mode"]) == ["deterministic", "fast"]
    assert (result["system_fingerprint"], result["seed"]) == (INFO.system_fingerprint, 3)
    assert not engine.running
    assert mismatches(client) == 0


class Roomy(FakeEngine):
    """Has room for the longest of detinfer check's own prompts."""

    def __init__(self, **options):
        super().__init__(**options)
        self.info = dataclasses.replace(INFO, max_model_len=2400, num_pages=40)


class Inexact(Roomy):
    """Beside others its log-probabilities end in other bits, and its digests do not."""

    async def generate(self, *request, **options):
        async for output in super().generate(*request, **options):
            if output.logprobs and len(self.running) > 1:
                one = output.logprobs[-1]
                changed = one._replace(logprob=one.logprob * (1 + 2**-52))
                output = dataclasses.replace(output, logprobs=[changed])
            yield output


def test_without_a_prompt_the_commands_own_are_compared(make_client):
    body = {"runs": 20, "max_tokens": 4, "seed": 3}
    *_, result = events(post(make_client(Roomy(delay=0.001)), body).text)
    assert result["reproducible"]
    prompts = result["by_mode"]["deterministic"]["prompts"]
    assert {"penalties", "log-probabilities", "schema", "long prompt"} <= {
        x["name"] for x in prompts
    }
    assert [x["runs"] for x in prompts] == [20] * 7 + [1] * 3
    client = make_client(Inexact(delay=0.001))
    *_, result = events(post(client, body).text)
    assert not result["reproducible"]
    assert result["unique_digests"] == 1
    assert "log-probabilities" in result["first_divergence"]["what"]
    assert mismatches(client) > 0


def test_prompts_of_the_commands_own_that_do_not_fit_are_refused_before_the_stream(client):
    response = post(client, {"runs": 1})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_an_engine_that_leaks_is_caught_and_counted(make_client):
    client = make_client(Leaky(delay=0.001))
    *_, result = events(post(client, BODY).text)
    assert not result["reproducible"]
    assert result["unique_digests"] == 2
    divergent = result["by_mode"]["deterministic"]["prompts"][0]["divergent_runs"]
    assert divergent > 0
    assert mismatches(client) == divergent
    assert result["first_divergence"]["load"]["rows"]


def test_fast_answers_that_differ_are_no_mismatch(make_client):
    client = make_client(Leaky(delay=0.001))
    *_, result = events(post(client, {**BODY, "modes": ["fast"]}).text)
    assert not result["reproducible"]
    assert mismatches(client) == 0


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"runs": 0}, "runs"),
        ({"runs": 1001}, "runs"),
        ({"max_tokens": 257}, "max_tokens"),
        ({"modes": ["slow"]}, "modes"),
        ({"modes": ["fast", "fast"]}, "modes"),
        ({"modes": []}, "modes"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_bad_input_is_named(client, change, param):
    response = post(client, {**BODY, **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


def test_fast_is_refused_where_there_is_none(make_client):
    engine = FakeEngine()
    engine.info = dataclasses.replace(INFO, allow_fast=False)
    response = post(make_client(engine), {**BODY, "modes": ["fast"]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "modes")


def test_a_prompt_too_long_is_refused_before_the_stream(client):
    response = post(client, {**BODY, "prompt": "x" * 256})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_an_engine_that_gives_up_ends_the_check_with_its_error(make_client):
    response = post(make_client(FakeEngine(fail_after=2)), BODY)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"


def test_a_full_queue_is_told(make_client):
    response = post(make_client(FakeEngine(queue_full=True)), BODY)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


def test_one_check_at_a_time_and_a_client_that_leaves_ends_it():
    async def main():
        engine = FakeEngine(delay=0.01)
        body = {**BODY, "runs": 1000}
        async with (
            serving(engine) as (port, service),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
        ):
            async with client.stream("POST", "/check", json=body) as first:
                async for _ in first.aiter_lines():
                    break
                second = await client.post("/check", json=body)
                assert second.status_code == 429
                assert second.json()["error"]["message"].startswith("another check is running")
            deadline = time.monotonic() + 5
            while engine.running or service.active:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            third = await client.post("/check", json={**BODY, "runs": 1})
            assert events(third.text)[-1]["reproducible"]

    asyncio.run(main())
