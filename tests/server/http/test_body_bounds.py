"""What one call may ask for, before the tokenizer or the engine works on it."""

from __future__ import annotations

import time

import pytest
from fake_engine import FakeEngine

from detinfer.server import call
from detinfer.server.limits import MAX_CHOICES

MESSAGE = {"role": "user", "content": ""}
LONG = {"role": "user", "content": "x" * 3_900_000}
LONG_PARTS = {"role": "user", "content": [{"type": "text", "text": "x" * 3_900_000}]}


def fault(response) -> dict:
    """What a failure says, in our words or in TGI's."""
    said = response.json()
    return {**said, "message": said["error"]} if "error_type" in said else said["error"]


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/generate", {"prompt": "x" * 3_900_000}, "prompt"),
        ("/generate", {"inputs": ["a", "x" * 3_900_000]}, "inputs"),
        ("/v1/completions", {"prompt": "x" * 3_900_000}, "prompt"),
        ("/generate_stream", {"inputs": "x" * 3_900_000}, "inputs"),
        ("/v1/chat/completions", {"messages": [LONG]}, "messages"),
        ("/v1/chat/completions", {"messages": [LONG_PARTS]}, "messages"),
        ("/tokenize", {"messages": [LONG]}, "messages"),
    ],
)
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(client, route, body, param):
    start = time.process_time()
    response = client.request("POST", route, json=body)
    assert time.process_time() - start < 2
    error = fault(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert error["code"] == "context_length_exceeded"
    assert "3900000 characters" in error["message"]
    assert error["message"].startswith("This model's maximum context length is 256 tokens. However")


def test_what_a_template_makes_of_short_messages_is_bounded_too(make_client):
    engine = FakeEngine(chat_template="{% for m in messages %}{{ m.content * 1000 }}{% endfor %}")
    engine.tokenizer.encode = None  # the refusal comes before
    client = make_client(engine)
    for route in ("/v1/chat/completions", "/tokenize"):
        error = client.post(route, {"messages": [{"role": "user", "content": "x" * 100}]}).json()
        assert (error["error"]["param"], error["error"]["code"]) == (
            "messages",
            "context_length_exceeded",
        )
        assert "got 100000 characters" in error["error"]["message"]


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("/v1/completions", {"prompt": "x" * 300}, "prompt"),
        ("/v1/completions", {"prompt": "x" * 200, "max_tokens": 57}, "max_tokens"),
        ("/v1/chat/completions", {"messages": [{**MESSAGE, "content": "x" * 300}]}, "messages"),
        (
            "/v1/chat/completions",
            {"messages": [MESSAGE], "max_completion_tokens": 999},
            "max_completion_tokens",
        ),
        ("/generate", {"prompt": "x" * 300}, "prompt"),
        ("/generate_stream", {"inputs": "x" * 300}, "inputs"),
    ],
)
def test_too_long_is_said_in_the_sentence_that_clients_look_for(client, route, body, field):
    error = fault(client.post(route, body))
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == field
    said = f"This model's maximum context length is 256 tokens. However, {field}: got "
    assert error["message"].startswith(said)


def test_more_answers_than_the_server_has_room_for_are_a_400_not_a_429(make_client):
    engine = FakeEngine()
    engine.capacity = 12
    client = make_client(engine)
    body = {"prompt": "abc", "max_tokens": 1}
    response = client.request("POST", "/v1/completions", json={**body, "n": 13})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"
    assert "room for 12" in response.json()["error"]["message"]
    response = client.generate({**body, "prompt": ["a"] * 13})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
    assert client.request("POST", "/v1/completions", json={**body, "n": 12}).status_code == 200
    assert not engine.running


def test_the_digest_header_is_left_out_where_it_would_be_long(client):
    body = {"prompt": "abc", "max_tokens": 1, "temperature": 0}
    some = client.request("POST", "/v1/completions", json={**body, "n": 16})
    many = client.request("POST", "/v1/completions", json={**body, "n": MAX_CHOICES})
    digests = [choice["digest"] for choice in some.json()["choices"]]
    assert some.headers["x-detinfer-digest"] == ", ".join(digests)
    assert "x-detinfer-digest" not in many.headers
    assert [choice["digest"] for choice in many.json()["choices"]] == digests[:1] * MAX_CHOICES


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/generate", {"input_ids": [[9]] * 700_000}, "input_ids"),
        ("/v1/completions", {"prompt": [[9]] * 700_000}, "prompt"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": ""}] * 90_000},
            "messages",
        ),
    ],
)
def test_a_list_of_a_million_entries_is_refused_unread(client, route, body, param):
    # Of this process, which has the server in it: other work on the machine is none of its.
    start = time.process_time()
    response = client.request("POST", route, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert time.process_time() - start < 5


def test_log_probabilities_of_a_call_are_bounded(client, monkeypatch):
    monkeypatch.setattr(call, "MAX_LOGPROBS_OF_CALL", 100)
    body = {"prompt": "abcd", "max_tokens": 5, "logprobs": 4}  # 25 of an answer
    assert client.request("POST", "/v1/completions", json={**body, "n": 4}).status_code == 200
    for more in ({"n": 5}, {"n": 4, "echo": True}, {"n": 4, "max_tokens": 6}):
        response = client.request("POST", "/v1/completions", json={**body, **more})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "logprobs")
    chat = {"messages": [MESSAGE], "logprobs": True, "top_logprobs": 19, "max_tokens": 6}
    response = client.request("POST", "/v1/chat/completions", json=chat)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "top_logprobs")
