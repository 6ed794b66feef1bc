"""``POST /score`` and ``/v1/score`` around the real engine and a tiny real model."""

from __future__ import annotations

import base64
import hashlib
import json

import numpy as np
import pytest
from fake_engine import FakeEngine
from tiny_engine import TinyEngine

from detinfer.kernels import reference

SCORE = "/score"
QUERY = "The quick brown fox"
TEXTS = ["The quick brown fox jumps over the lazy dog.", "b", QUERY, "A slow green frog"]


@pytest.fixture(scope="module")
def engine():
    return TinyEngine()


@pytest.fixture
def client(make_client, engine):
    return make_client(engine)


def ask(client, first, second, route=SCORE, **options):
    answer = client.post(route, {"text_1": first, "text_2": second, **options})
    assert answer.status_code == 200, answer.text
    return answer


def told(client, first, second, **options):
    return [
        (item["score"], item["digest"])
        for item in ask(client, first, second, **options).json()["data"]
    ]


def vectors(client, texts, **options):
    body = {"input": texts, "encoding_format": "base64", **options}
    items = client.post("/v1/embeddings", body).json()["data"]
    return np.array([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in items])


def test_an_answer_is_vllms_with_a_digest_of_each_score(client, engine):
    answer = ask(client, QUERY, TEXTS, model=engine.info.model_name, user="me", request_id="mine")
    body = answer.json()
    assert {*body} == {
        "id", "object", "created", "data", "model", "usage", "system_fingerprint",
        "deterministic",
    }  # fmt: skip
    assert (body["id"], body["object"]) == ("score-mine", "list")
    assert body["model"] == engine.info.model_name
    tokens = len(QUERY) + sum(map(len, TEXTS))
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert body["system_fingerprint"] == engine.info.system_fingerprint
    assert body["deterministic"] is True
    assert [{*item} for item in body["data"]] == [{"object", "index", "score", "digest"}] * 4
    assert [(item["object"], item["index"]) for item in body["data"]] == [
        ("score", index) for index in range(4)
    ]
    digests = [item["digest"] for item in body["data"]]
    assert answer.headers["x-detinfer-digest"] == ", ".join(digests)
    assert answer.headers["x-detinfer-deterministic"] == "true"
    fresh = ask(client, QUERY, TEXTS, route="/v1/score").json()
    assert fresh["data"] == body["data"]
    assert fresh["id"].startswith("score-")


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_score_is_the_contracts_of_the_vectors_that_embeddings_gives(client, pooling):
    [query], others = (
        vectors(client, QUERY, pooling=pooling),
        vectors(client, TEXTS, pooling=pooling),
    )
    for other, (score, digest) in zip(
        others, told(client, QUERY, TEXTS, pooling=pooling), strict=True
    ):
        expected = np.float32(reference.score(query, other))
        assert score == expected
        raw = query.tobytes() + other.tobytes() + expected.tobytes()
        assert digest == hashlib.sha256(raw).hexdigest()
        exact = query.astype(np.float64) @ other.astype(np.float64)
        assert abs(score - exact) < 1e-6
    assert max(score for score, _ in told(client, QUERY, TEXTS)) == pytest.approx(1, abs=1e-6)


def test_a_pair_alone_or_together_or_the_other_way_round_has_one_score(client):
    together = told(client, QUERY, TEXTS)
    assert told(client, [QUERY], TEXTS) == together
    assert told(client, [QUERY] * len(TEXTS), TEXTS) == together
    assert [told(client, QUERY, text)[0] for text in TEXTS] == together
    assert [told(client, [QUERY], [text])[0] for text in TEXTS] == together
    many = [f"{i} {QUERY}"[: 5 + i] for i in range(40)]
    assert told(client, QUERY, [*many, *TEXTS])[40:] == together
    around = [told(client, text, QUERY)[0][0] for text in TEXTS]
    assert around == [score for score, _ in together]
    assert len(set(together)) == len(TEXTS)


@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
def test_vllms_other_names_of_a_pair(client, names):
    body = dict(zip(names, (QUERY, TEXTS), strict=True))
    found = client.post(SCORE, body).json()["data"]
    assert found == ask(client, QUERY, TEXTS).json()["data"]


def test_a_client_may_leave_the_mode_that_promises(client):
    answer = ask(client, QUERY, TEXTS, deterministic=False)
    assert answer.json()["deterministic"] is False
    assert answer.headers["x-detinfer-deterministic"] == "false"


def test_neutral_values_of_vllms_fields_change_nothing(client):
    neutral = {
        "truncate_prompt_tokens": None, "priority": 0, "request_id": "mine", "padding": None,
        "truncation_side": "left", "mm_processor_kwargs": {}, "cache_salt": "mine",
        "use_activation": False, "max_tokens_per_query": 0, "max_tokens_per_doc": 0,
        "instruction": None, "chat_template_kwargs": None, "pooling": None, "queries": None,
    }  # fmt: skip
    assert told(client, QUERY, TEXTS, **neutral) == told(client, QUERY, TEXTS)


SEVERAL = "expected a string or a list of strings"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "text_1", f"missing, {SEVERAL}"),
        ({"text_1": "a"}, "text_2", f"missing, {SEVERAL}"),
        ({"documents": ["a"]}, "queries", f"missing, {SEVERAL}"),
        ({"queries": "a"}, "documents", f"missing, {SEVERAL}"),
        ({"text_1": "a", "documents": "b"}, "documents", "got it beside text_1, expected one of"),
        ({"text_1": "a", "text_2": "b", "items": "b"}, "items", "got it beside text_1"),
        ({"text_1": "", "text_2": "b"}, "text_1", "got an empty one"),
        ({"text_1": "a", "text_2": ["b", ""]}, "text_2", "got an empty one"),
        ({"text_1": [], "text_2": "b"}, "text_1", "got none, expected at least one"),
        ({"text_1": "a", "text_2": []}, "text_2", "got none, expected at least one"),
        ({"text_1": ["a", "b"], "text_2": "c"}, "text_2", "got 1 for 2 of text_1, expected as m"),
        ({"text_1": ["a"] * 2, "text_2": ["c"] * 3}, "text_2", "got 3 for 2 of text_1"),
        ({"queries": ["a"] * 2, "documents": ["c"] * 3}, "documents", "got 3 for 2 of queries"),
        ({"text_1": "a", "text_2": ["b"] * 128}, "text_2",
         "got 129 in all, expected 1 to 128 at a time"),
        ({"text_1": ["a"] * 129, "text_2": ["b"] * 129}, "text_1", "got 129, expected 1 to 128"),
        ({"text_1": 5, "text_2": "b"}, "text_1", f"got 5, {SEVERAL}"),
        ({"text_1": "a", "text_2": [[1]]}, "text_2", SEVERAL),
        ({"text_1": "a", "text_2": {"content": []}}, "text_2", SEVERAL),
        ({"text_1": "a", "text_2": "x" * 251}, "text_2", "However, text_2: got 251 tokens"),
        ({"text_1": "x" * 100_000, "text_2": "b"}, "text_1", "text_1: got 100000 characters"),
        ({"text_1": "a", "text_2": "b", "pooling": "max"}, "pooling", "expected 'mean' or 'last'"),
        ({"text_1": "a", "text_2": "b", "instruction": "x"}, "instruction", "not supported yet"),
        ({"text_1": "a", "text_2": "b", "max_tokens_per_doc": 5}, "max_tokens_per_doc", "not supp"),
        ({"text_1": "a", "text_2": "b", "request_id": ""}, "request_id", "1 to 128 characters"),
        ({"text_1": "a", "text_2": "b", "text_3": "c"}, "text_3", "unknown field, did you mean"),
        ({"text_1": "a", "text_2": "b", "dimensions": 5}, "dimensions", "unknown field"),
    ],
)  # fmt: skip
def test_bad_input_names_its_field(client, body, param, message):
    answer = client.post(SCORE, json.dumps(body).encode())
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert message in error["message"]
    assert "\n" not in error["message"]


def test_another_model_is_not_found(client):
    answer = client.post(SCORE, {"text_1": "a", "text_2": "b", "model": "bge-reranker-v2-m3"})
    assert answer.status_code == 404


def test_a_server_that_loads_or_is_full_says_so(make_client):
    body = {"text_1": "a", "text_2": "b"}
    assert make_client(loading=True).post(SCORE, body).status_code == 503
    full = make_client(FakeEngine(queue_full=True)).post(SCORE, body)
    assert (full.status_code, full.headers["retry-after"]) == (429, "3")
