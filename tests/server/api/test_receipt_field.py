"""``receipt: true``, in every dialect: each answer with the receipt it has in this process."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fake_engine import FakeEngine
from receipt_samples import KEY
from tiny_engine import TinyEngine

from detinfer.engine.llm import LLM
from detinfer.errors import ConfigError
from detinfer.params import SamplingParams
from detinfer.receipts import seal
from detinfer.receipts.receipt import receipt_of, receipt_params
from detinfer.receipts.replay import verify
from detinfer.runner.fingerprint import PARTS, Fingerprint
from detinfer.server.limits import MAX_RECEIPT_TOKENS_OF_CALL

IDS = list(b"one two one two one")
MESSAGES = [{"role": "user", "content": "hi"}]
SAMPLED = {"temperature": 0.8, "seed": 5}
SGLANG = {"temperature": 0.8, "sampling_seed": 5}
# route: (body, the answers of a value of it, where an answer has its receipt)
CALLS = {
    "/generate": ({"input_ids": IDS, "max_tokens": 9, **SAMPLED}, lambda value: [value]),
    "/generate ": (
        {"prompt": ["ab", "cde"], "n": 2, "max_tokens": 9, **SAMPLED},
        lambda value: value if isinstance(value, list) else [value],
    ),
    "/v1/completions": (
        {"prompt": "ab", "n": 2, "seed": 5, "max_tokens": 9, "echo": True},
        lambda value: value["choices"],
    ),
    "/v1/chat/completions": (
        {"messages": MESSAGES, "n": 2, "seed": 5, "max_tokens": 9},
        lambda value: value["choices"],
    ),
    "/generate SGLang": (
        {"input_ids": IDS, "sampling_params": {"max_new_tokens": 9, **SGLANG}},
        lambda value: [value["meta_info"]],
    ),
    "/generate TGI": (
        {"inputs": "ab", "parameters": {"max_new_tokens": 9, **SAMPLED}},
        lambda value: [value],
    ),
    "/generate_stream": (
        {"inputs": "ab", "parameters": {"max_new_tokens": 9, **SAMPLED}},
        lambda value: [value],
    ),
    "/": (
        {"inputs": "ab", "parameters": {"max_new_tokens": 9, **SAMPLED}},
        lambda value: value if isinstance(value, list) else [value],
    ),
}
WHOLE = [name for name in CALLS if name != "/generate_stream"]


@pytest.fixture(scope="module")
def engine():
    made = TinyEngine()
    fingerprint = Fingerprint(dict.fromkeys(PARTS, "x") | {"contract": "portable-1"})
    made.info = made._engine.info = replace(
        made.info,
        fingerprint=dict(fingerprint.parts),
        system_fingerprint=fingerprint.system_fingerprint,
    )
    return made


@pytest.fixture
def client(make_client, engine):
    return make_client(engine)


def body_of(name, **fields):
    body, _ = CALLS[name]
    if "parameters" in body:
        inner = {key: value for key, value in fields.items() if key != "stream"}
        outer = {key: value for key, value in fields.items() if key == "stream"}
        return {**body, "parameters": {**body["parameters"], **inner}, **outer}
    return {**body, **fields}


def post(client, name, **fields):
    return client.post(name.split(" ")[0], body_of(name, **fields))


def answers(client, name, **fields):
    response = post(client, name, **fields)
    assert response.status_code == 200, response.text
    return CALLS[name][1](response.json())


def events(response):
    lines = [one.removeprefix("data: ") for one in response.text.split("\n\n") if one]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("name", WHOLE)
def test_each_answer_has_a_receipt_that_holds(client, engine, name):
    found = answers(client, name, receipt=True)
    expected = 4 if name == "/generate " else 2 if name.startswith("/v1") else 1
    assert len(found) == expected
    for one in found:
        receipt = one["receipt"]
        assert receipt["answer"]["digest"] == one["digest"]
        assert receipt["parameters"]["seed"] == str(one["seed"])
        verdict = verify(receipt, engine._engine)
        assert verdict.match, verdict.findings
        assert verdict.tokens == 9
    assert len({json.dumps(one["receipt"]) for one in found}) == expected


@pytest.mark.parametrize("name", CALLS)
def test_a_stream_ends_with_the_receipt_of_the_whole_answer(client, engine, name):
    streamed = [
        one
        for value in events(post(client, name, receipt=True, stream=True))
        for one in CALLS[name][1](value)
    ]
    ended = [one for one in streamed if one.get("digest")]
    assert [one for one in streamed if "receipt" in one] == ended
    if name in WHOLE:
        receipts = [one["receipt"] for one in answers(client, name, receipt=True)]
        assert sorted(map(json.dumps, receipts)) == sorted(
            json.dumps(one["receipt"]) for one in ended
        )
    for one in ended:
        assert verify(one["receipt"], engine._engine).match


@pytest.mark.parametrize("name", WHOLE)
def test_it_is_the_receipt_that_this_process_gives(client, engine, name):
    for one in answers(client, name, receipt=True):
        receipt = one["receipt"]
        chat = name.startswith("/v1")
        params = receipt_params(
            SamplingParams(
                max_tokens=9, temperature=1.0 if chat else 0.8, seed=int(one["seed"] or 0)
            ),
            9,
        )
        [answer] = LLM(engine=engine._engine).generate([receipt["prompt"]["token_ids"]], params)
        assert seal.seal(receipt_of(engine.info, answer, params).to_value()) == receipt


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wanted", [None, False])
def test_nothing_is_kept_where_none_is_wanted(make_client, name, wanted):
    fake = FakeEngine()
    response = post(make_client(fake), name, receipt=wanted)
    assert response.status_code == 200
    assert '"receipt"' not in response.text
    assert not any(params.checksums for params in fake.seen)


@pytest.mark.parametrize("name", WHOLE)
def test_it_changes_nothing_else(client, name):
    plain, proven = answers(client, name), answers(client, name, receipt=True)
    for one in (*plain, *proven):
        one.pop("receipt", None)
        one.pop("id", None)
    assert proven == plain


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by_default", [False, True])
def test_a_fast_answer_has_none_and_says_why(make_client, engine, name, stream, by_default):
    client = make_client(engine, default_deterministic=not by_default)
    fast = {} if by_default else {"deterministic": False}
    response = post(client, name, receipt=True, stream=stream, **fast)
    assert response.status_code == 400
    value = response.json()
    error = value["error"] if isinstance(value["error"], dict) else value
    field = "parameters.receipt" if "parameters" in CALLS[name][0] else "receipt"
    assert error["param"] == field
    said = error.get("message", error["error"] if error is value else "")
    assert said.startswith(f"{field}: got it for an answer that is not deterministic")


def test_a_type_that_is_none_is_named(client):
    response = post(client, "/v1/completions", receipt="yes")
    assert response.status_code == 400
    assert response.json()["error"]["message"] == 'receipt: got "yes", expected true or false'


def test_what_is_only_scored_has_the_receipt_of_the_token_that_its_digest_is_of(client, engine):
    [one] = answers(client, "/v1/completions", receipt=True, max_tokens=0, n=1)
    assert len(one["receipt"]["answer"]["token_ids"]) == 1
    assert verify(one["receipt"], engine._engine).match


def test_the_best_of_several_and_the_others_too(client, engine):
    body = {"best_of": 3, "do_sample": True, "details": True, "max_new_tokens": 5, "receipt": True}
    value = client.post("/generate", {"inputs": "ab", "parameters": body}).json()
    for one in (value, *value["details"]["best_of_sequences"]):
        assert one["receipt"]["answer"]["digest"] == one["digest"]
        assert verify(one["receipt"], engine._engine).match


def test_receipts_of_a_call_are_bounded(client, monkeypatch):
    body = {"input_ids": IDS, "max_tokens": 11, "n": 8, "receipt": True}
    monkeypatch.setattr("detinfer.server.call.MAX_RECEIPT_TOKENS_OF_CALL", 8 * (len(IDS) + 11))
    assert client.generate(body).status_code == 200
    response = client.generate(body | {"max_tokens": 12})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "receipt"
    assert client.generate(body | {"max_tokens": 12, "receipt": False}).status_code == 200
    assert MAX_RECEIPT_TOKENS_OF_CALL == 524_288


def test_a_server_with_a_key_signs(make_client, engine, tmp_path):
    path = tmp_path / "key.pem"
    path.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    client = make_client(engine, receipt_key=str(path))
    [one] = answers(client, "/generate", receipt=True)
    assert seal.signer(one["receipt"]) == one["receipt"]["signature"]["public_key"]
    told = client.post("/verify", one["receipt"]).json()
    assert (told["match"], told["signed_by"]) == (True, one["receipt"]["signature"]["public_key"])
    with pytest.raises(ConfigError, match=r"--receipt-key: .* no private key in PEM"):
        make_client(engine, receipt_key=str(tmp_path / "none"))
