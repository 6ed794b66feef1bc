"""``POST /v1/embeddings`` around the real engine and a tiny real model."""

from __future__ import annotations

import base64
import hashlib
import json
import struct

import pytest
from fake_engine import FakeEngine
from tiny_engine import TinyEngine

EMBEDDINGS = "/v1/embeddings"
TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def engine():
    return TinyEngine()


@pytest.fixture
def client(make_client, engine):
    return make_client(engine)


def embed(client, inputs, **options):
    answer = client.post(EMBEDDINGS, {"input": inputs, **options})
    assert answer.status_code == 200, answer.text
    return answer


def vectors(client, inputs, **options):
    return [item["embedding"] for item in embed(client, inputs, **options).json()["data"]]


def test_an_answer_is_openais_with_a_digest_of_each_vectors_bits(client, engine):
    answer = embed(client, [TEXT, "b"], model=engine.info.model_name, user="me")
    body = answer.json()
    assert {*body} == {
        "object", "data", "model", "usage", "system_fingerprint", "deterministic",
    }  # fmt: skip
    assert (body["object"], body["model"]) == ("list", engine.info.model_name)
    assert body["usage"] == {"prompt_tokens": len(TEXT) + 1, "total_tokens": len(TEXT) + 1}
    assert body["system_fingerprint"] == engine.info.system_fingerprint
    assert body["deterministic"] is True
    assert [item["index"] for item in body["data"]] == [0, 1]
    for item in body["data"]:
        assert item["object"] == "embedding"
        assert len(item["embedding"]) == engine.info.hidden_size
        bits = struct.pack(f"<{len(item['embedding'])}f", *item["embedding"])
        assert item["digest"] == hashlib.sha256(bits).hexdigest()
        assert sum(x * x for x in item["embedding"]) == pytest.approx(1, abs=1e-6)
    digests = [item["digest"] for item in body["data"]]
    assert answer.headers["x-detinfer-digest"] == ", ".join(digests)
    assert answer.headers["x-detinfer-deterministic"] == "true"


def test_base64_has_the_same_bits(client):
    [plain] = embed(client, TEXT).json()["data"]
    [packed] = embed(client, TEXT, encoding_format="base64").json()["data"]
    bits = base64.b64decode(packed["embedding"])
    assert list(struct.unpack(f"<{len(bits) // 4}f", bits)) == plain["embedding"]
    assert hashlib.sha256(bits).hexdigest() == packed["digest"] == plain["digest"]


def test_texts_and_their_ids_have_one_vector_each_alone_or_together(client):
    ids = list(TEXT.encode())
    [alone] = vectors(client, TEXT)
    assert vectors(client, ids) == vectors(client, [ids]) == vectors(client, [TEXT]) == [alone]
    many = [f"{i} {TEXT}"[: 5 + i] for i in range(40)]
    assert vectors(client, [*many, TEXT])[40] == alone
    assert vectors(client, [*many[:3], TEXT, *many])[3] == alone


def test_another_text_pooling_or_length_is_another_vector(client):
    found = [
        *vectors(client, [TEXT, TEXT[:-1]]),
        *vectors(client, TEXT, pooling="last"),
        *vectors(client, TEXT, normalize=False),
        *vectors(client, TEXT, dimensions=8),
    ]
    assert len({tuple(one) for one in found}) == 5
    assert len(found[-1]) == 8
    whole, first = vectors(client, TEXT, normalize=False), found[3][:8]
    assert vectors(client, TEXT, normalize=False, dimensions=8) == [first] == [whole[0][:8]]


def test_a_client_may_leave_the_mode_that_promises(client):
    answer = embed(client, TEXT, deterministic=False)
    assert answer.json()["deterministic"] is False
    assert answer.headers["x-detinfer-deterministic"] == "false"


def test_neutral_values_of_vllms_fields_change_nothing(client):
    neutral = {
        "add_special_tokens": True, "truncate_prompt_tokens": None, "priority": 0,
        "request_id": "mine", "embed_dtype": "float32", "endianness": "native", "dimensions": None,
        "encoding_format": None, "pooling": None, "normalize": None, "padding": None,
        "truncation_side": "left", "mm_processor_kwargs": {}, "cache_salt": "mine",
        "use_activation": True,
    }  # fmt: skip
    assert vectors(client, TEXT, **neutral) == vectors(client, TEXT)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "missing, expected a string, a list of strings, of token ids, or of lists"),
        ({"input": None}, "input", "missing"),
        ({"input": ""}, "input", "got an empty one, expected text or token ids"),
        ({"input": []}, "input", "got 0, expected 1 to 128 at a time"),
        ({"input": ["a", ""]}, "input", "got an empty one"),
        ({"input": [[5], []]}, "input", "got an empty one"),
        ({"input": ["a"] * 129}, "input", "got 129, expected 1 to 128 at a time"),
        ({"input": [[5]] * 2049}, "input", "expected a string, a list of strings, of token ids"),
        ({"input": 5}, "input", "expected a string, a list of strings, of token ids"),
        ({"input": [1, "a"]}, "input", "expected a string, a list of strings, of token ids"),
        ({"input": [131]}, "input", "got token id 131, expected 0..130"),
        ({"input": [-1]}, "input", "got token id -1, expected 0..130"),
        ({"input": "x" * 251}, "input", "However, input: got 251 tokens"),
        ({"input": "x" * 100_000}, "input", "However, input: got 100000 characters"),
        ({"input": "x", "dimensions": 0}, "dimensions", "got 0, expected an integer in 1.."),
        ({"input": "x", "dimensions": 65}, "dimensions", "got 65, expected an integer in 1..64"),
        ({"input": "x", "dimensions": 1.5}, "dimensions", "got 1.5, expected an integer"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "x", "pooling": "max"}, "pooling", "expected 'mean' or 'last'"),
        ({"input": "x", "normalize": 1}, "normalize", "expected true or false"),
        ({"input": "x", "embed_dtype": "float16"}, "embed_dtype", "not supported yet"),
        ({"input": "x", "dimension": 5}, "dimension", "unknown field, did you mean dimensions?"),
        ({"input": "x", "model": 5}, "model", "got 5, expected a string"),
    ],
)
def test_bad_input_names_its_field(client, body, param, message):
    answer = client.post(EMBEDDINGS, json.dumps(body).encode())
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert message in error["message"]


def test_another_model_is_not_found(client):
    answer = client.post(EMBEDDINGS, {"input": "x", "model": "text-embedding-3-small"})
    assert answer.status_code == 404


def test_a_server_that_loads_or_is_full_says_so(make_client):
    assert make_client(loading=True).post(EMBEDDINGS, {"input": "x"}).status_code == 503
    full = make_client(FakeEngine(queue_full=True)).post(EMBEDDINGS, {"input": "x"})
    assert (full.status_code, full.headers["retry-after"]) == (429, "3")


def test_metrics_and_the_log_count_a_vector_as_a_request(make_client, engine, caplog):
    caplog.set_level("INFO", logger="detinfer.access")
    client = make_client(engine)
    [item] = embed(client, TEXT).json()["data"]
    assert client.app.state.service.metrics.requests["deterministic", "stop"] == 1
    line = caplog.records[-1].fields
    assert line["prompt_tokens"] == len(TEXT)
    assert (line["completion_tokens"], line["finish_reason"]) == (0, "stop")
    assert line["digest"] == item["digest"]
