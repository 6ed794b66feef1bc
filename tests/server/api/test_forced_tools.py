"""Tools on ``/v1/chat/completions``: calls that a grammar forces."""

from __future__ import annotations

import json

import jsonschema
import pytest
from constrained import PERSON
from tool_chats import assembled, constrained_engine, fake, named, post

from detinfer.params import constraint_of
from detinfer.receipts.replay import verify


def forced(calls):
    return json.dumps(calls)


def test_forced_calls_are_a_grammar_and_stream_as_they_come(make_client):
    calls = [{"name": "get_weather", "arguments": {"name": "a", "age": 3}}]
    engine = fake(forced(calls))
    client = make_client(engine)
    for choice in (named("get_weather"), "required"):
        chunks = post(client, tool_choice=choice, stream=True)
        schema = json.loads(constraint_of(engine.seen[-1])[1])
        names = ["get_weather", "say"] if choice == "required" else ["get_weather"]
        options = schema["items"]["anyOf"]
        assert [one["properties"]["name"]["const"] for one in options] == names
        assert schema.get("maxItems") == (None if choice == "required" else 1)
        message, reason = assembled(chunks)
        [call] = message["tool_calls"]
        assert call["function"]["arguments"] == '{"name": "a", "age": 3}'
        assert reason == "tool_calls"
        assert len(chunks) == 3 + len(call["function"]["arguments"])
    post(client, tool_choice="required", parallel_tool_calls=False)
    assert json.loads(constraint_of(engine.seen[-1])[1])["maxItems"] == 1


def test_a_format_of_the_text_beside_a_forced_call_changes_nothing(make_client):
    engine = fake(forced([{"name": "say", "arguments": {}}]))
    client = make_client(engine)
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    for response_format in (None, {"type": "json_object"}, schema):
        [one] = post(client, tool_choice="required", response_format=response_format)["choices"]
        assert one["finish_reason"] == "tool_calls"
    assert len({constraint_of(params) for params in engine.seen}) == 1


def test_a_forced_call_that_is_cut_off_says_length(make_client):
    client = make_client(fake(forced([{"name": "say", "arguments": {"a": 1}}])))
    for most, arguments in ((34, '{"a"'), (500, '{"a": 1}')):
        [one] = post(client, tool_choice="required", max_tokens=most)["choices"]
        [call] = one["message"]["tool_calls"]
        assert call["function"]["arguments"] == arguments
        assert one["finish_reason"] == ("length" if most == 34 else "tool_calls")


@pytest.fixture(scope="module")
def engine():
    return constrained_engine()


@pytest.mark.parametrize("choice", ["required", named("get_weather"), named("say")])
def test_any_model_makes_forced_calls_that_validate(make_client, engine, choice):
    client = make_client(engine)
    parameters = {"get_weather": PERSON, "say": {"additionalProperties": False}}
    body = {"tool_choice": choice, "parallel_tool_calls": False, "n": 4, "seed": 3}
    body |= {"request_id": "mine", "receipt": True}
    whole = post(client, **body)["choices"]
    chunks = post(client, stream=True, **body)
    for one in whole:
        assert one["finish_reason"] == "tool_calls"
        assert one["message"]["content"] is None
        [call] = one["message"]["tool_calls"]
        function = call["function"]
        assert choice in ("required", named(function["name"]))
        jsonschema.validate(json.loads(function["arguments"]), parameters[function["name"]])
        # Streamed the same, alone the same, and its receipt holds.
        message, reason = assembled(chunks, one["index"])
        assert (message["tool_calls"], reason) == ([call], "tool_calls")
        [alone] = post(client, **body | {"n": 1, "seed": one["seed"]})["choices"]
        assert alone["digest"] == one["digest"]
        assert "json_schema" in one["receipt"]["parameters"]
        verdict = verify(one["receipt"], engine._engine)
        assert verdict.match, verdict.findings
    assert len({one["digest"] for one in whole}) > (choice != named("say"))


def test_several_calls_where_several_may_be(make_client, engine):
    body = {"tool_choice": "required", "n": 16, "seed": 2}
    counts = {
        len(one["message"]["tool_calls"]) for one in post(make_client(engine), **body)["choices"]
    }
    assert counts > {1}
