"""``POST /verify``: what is said of a receipt is what a replay in this process says of it."""

from __future__ import annotations

import asyncio
import base64
import copy
import json

import httpx
import pytest
from fake_engine import FakeEngine
from loopback import serving
from receipt_samples import BAD, EDITS, GREEDY, KEY, SAMPLED, change, edited, engine, made
from tiny_engine import TinyEngine
from tiny_solver import TinySolver

from detinfer.receipts import seal
from detinfer.receipts.reading import MAX_BYTES
from detinfer.receipts.replay import verify
from detinfer.server.limits import MAX_BODY_BYTES

PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()


@pytest.fixture(scope="module")
def served():
    return TinyEngine(engine=engine())


@pytest.fixture
def client(make_client, served):
    return make_client(served)


@pytest.fixture(scope="module")
def signed():
    return made(SAMPLED, key=KEY)


def verdict_of(client, value, **options):
    response = client.post("/verify", value, **options)
    assert response.status_code == 200, response.text
    return response.json()


def here(value):
    """The verdict of an engine in this process, as JSON has it."""
    return json.loads(json.dumps(verify(value, engine()).to_value()))


def test_a_receipt_holds(client, signed):
    value = verdict_of(client, signed)
    assert value.pop("seconds") > 0
    tokens = len(signed["answer"]["token_ids"])
    assert value == {"match": True, "findings": [], "tokens": tokens, "signed_by": PUBLIC}


# Without a seed each replay draws another, and so may differ from the receipt at another token.
@pytest.mark.parametrize("name", sorted(EDITS.keys() - {"no seed"}))
@pytest.mark.parametrize("how", ["as it is", "sealed", "made to fit"])
def test_an_edited_one_gets_the_verdict_that_it_gets_here(client, signed, name, how):
    value = edited(signed, name, how == "made to fit")
    value = seal.seal(value) if how != "as it is" else value | {"sha256": signed["sha256"]}
    told, ours = verdict_of(client, value), here(value)
    for one in (told, ours):
        one.pop("seconds")
    assert told == ours
    assert told["match"] == (how == "made to fit" and EDITS[name][2] is None)


def test_a_receipt_of_another_model_is_a_verdict(client, signed, make_client):
    other = make_client(TinyEngine(engine=engine(weights="others")))
    value = verdict_of(other, signed)
    assert value["match"] is False
    [finding] = value["findings"]
    assert (finding["part"], finding["fingerprint_parts"]) == ("model", ["weights"])


def test_the_engine_is_as_it_was(client, served, signed):
    value = edited(signed, "token", True)
    for one in (signed, seal.seal(value)):
        verdict_of(client, one)
    stats = served._engine.stats()
    assert (stats["running"], stats["waiting"]) == (0, 0)
    assert stats["free_pages"] == stats["num_pages"]
    requests = client.app.state.service.metrics.requests
    assert requests == {("deterministic", "length"): 1, ("deterministic", "abort"): 1}


def test_no_cached_page_is_used(client, served, signed):
    long = made(GREEDY, prompt=list(range(90)) * 3)
    for _ in range(2):
        assert verdict_of(client, long)["match"]
    assert served._engine.stats()["prefix_hits"] == 0


@pytest.mark.parametrize("name", [name for name in BAD if name != "large"])
def test_what_is_no_receipt_is_a_400_in_one_line(client, name):
    content, said = BAD[name]
    response = client.post("/verify", content)
    assert response.status_code == 400
    error = response.json()["error"]
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "receipt")


@pytest.mark.parametrize(
    ("edit", "param", "said"),
    [
        (change("form", to="detinfer-receipt-9"), "form", "expected 'detinfer-receipt-1'"),
        (change("answer", "token_ids", to=[]), "answer.token_ids", "one at least"),
        (change("answer", "checksums", 0, to="x"), "answer.checksums", "expected 32 hex digits"),
        (change("parameters", "temperature", to=-1), "parameters", "temperature: got -1"),
        (lambda value: value.pop("prompt"), "receipt", "prompt is missing"),
        (change("answer", "text", to="\ud800"), "receipt", "no canonical JSON"),
    ],
)
def test_the_part_that_is_none_is_named(client, signed, edit, param, said):
    value = copy.deepcopy(signed)
    edit(value)
    response = client.post("/verify", json.dumps(value).encode())
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert said in error["message"]


def test_a_truncated_one_wherever_it_ends(client, signed):
    content = json.dumps(signed).encode()
    for end in range(0, len(content), 97):
        response = client.post("/verify", content[:end])
        assert (response.status_code, response.json()["error"]["param"]) == (400, "receipt")


@pytest.mark.parametrize(
    "begun",
    [
        b"content-length: 104857600\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n" + b"10000\r\n%b\r\n" % (b" " * 65536) * 65,
    ],
    ids=["announced", "chunked"],
)
def test_of_a_hundred_megabytes_no_more_is_read_than_a_body_may_have(served, begun):
    async def scenario() -> None:
        async with serving(served) as (port, _), asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /verify HTTP/1.1\r\nhost: a\r\n" + begun)
            assert b" 413 " in await reader.readline()
            writer.close()

    asyncio.run(scenario())
    assert MAX_BODY_BYTES < 65 * 65536
    assert MAX_BODY_BYTES < MAX_BYTES


def test_who_may_ask_and_whether_there_is_anybody_to_ask(make_client, served, signed):
    guarded = make_client(served, api_keys=("first",))
    assert guarded.post("/verify", signed).status_code == 401
    assert verdict_of(guarded, signed, headers={"authorization": "Bearer first"})["match"]
    loading = make_client(loading=True)
    assert loading.post("/verify", signed).json()["error"]["code"] == "loading"
    loading.app.state.service.solver = TinySolver()
    loading.app.state.service.serves = ("solvers",)
    response = loading.post("/verify", signed)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_served")


class _Slow(FakeEngine):
    """Takes its time over what ``engine`` made."""

    def __init__(self, **options):
        super().__init__(**options)
        self.info = engine().info


def test_a_full_queue_turns_receipts_away_too(make_client, signed):
    response = make_client(_Slow(queue_full=True)).post("/verify", signed)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


def test_a_replay_that_fails_is_a_verdict(make_client, signed):
    value = verdict_of(make_client(_Slow(fail_after=0)), signed)
    [finding] = value["findings"]
    assert finding["part"] == "answer"
    assert finding["message"] == "the replay failed: logits: NaN at token 3"


def test_a_client_that_goes_away_ends_the_replay(signed):
    content = json.dumps(signed).encode()
    head = f"POST /verify HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n".encode()

    async def scenario() -> None:
        slow = _Slow(delay=60)
        async with serving(slow) as (port, service), asyncio.timeout(10):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + content)
            while not slow.running:
                await asyncio.sleep(0.01)
            assert service.active == 1
            writer.close()
            while slow.running or service.active:
                await asyncio.sleep(0.01)
            assert len(slow.aborted) == 1

    asyncio.run(scenario())


def test_others_are_served_meanwhile(served, signed):
    """A replay beside other requests: each gets what it gets alone."""
    body = {"input_ids": list(range(40)), "max_tokens": 30, "ignore_eos": True}

    async def scenario() -> None:
        async with serving(served) as (port, _):
            base = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base) as http:
                alone = (await http.post("/generate", json=body)).json()["digest"]
                calls = [http.post("/generate", json=body), http.post("/verify", json=signed)] * 4
                answers = [one.json() for one in await asyncio.gather(*calls)]
        assert {one["digest"] for one in answers[::2]} == {alone}
        assert all(one["match"] for one in answers[1::2])

    asyncio.run(scenario())
