"""Tools on ``/v1/chat/completions``: calls that the model makes of its own accord."""

from __future__ import annotations

import json

import pytest
from fake_engine import byte_tokenizer
from tool_chats import ARGUMENTS, CALL, SAY, TEMPLATE, allowed, assembled, fake, post

from detinfer.params import constraint_of


@pytest.mark.parametrize("choice", [None, "auto"])
def test_a_call_is_told_as_openai_does(make_client, choice):
    client = make_client(fake(CALL), tool_call_parser="hermes")
    [one] = post(client, tool_choice=choice)["choices"]
    [call] = one["message"].pop("tool_calls")
    assert call.pop("id").startswith("call_")
    function = {"name": "get_weather", "arguments": ARGUMENTS}
    assert call == {"type": "function", "function": function}
    assert one["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert one["finish_reason"] == "tool_calls"


def test_a_stream_of_calls_is_openais(make_client):
    client = make_client(fake(f"Well.\n{CALL}{SAY}"), tool_call_parser="hermes")
    chunks = post(client, stream=True)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    for delta in deltas:
        for call in delta.get("tool_calls", ()):
            call.pop("id", None)
    texts = [{"content": letter} for letter in "Well."]
    assert deltas == [
        {"role": "assistant", "content": None},
        *texts,
        {"tool_calls": [{"index": 0, "type": "function"}
                        | {"function": {"name": "get_weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS}}]},
        {"tool_calls": [{"index": 1, "type": "function"}
                        | {"function": {"name": "say", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]  # fmt: skip
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("text", [f"Well.\n{CALL}\n{SAY}", "No call.", CALL[:-20], f"{CALL}!"])
def test_a_stream_adds_up_to_the_whole_answer(make_client, text):
    client = make_client(fake(text), tool_call_parser="hermes")
    body = {"request_id": "mine", "n": 3, "logprobs": True, "return_token_ids": True}
    whole = post(client, **body)
    chunks = post(client, stream=True, **body)
    for choice in whole["choices"]:
        message, reason = assembled(chunks, choice["index"])
        expected = {name: one for name, one in choice["message"].items() if one is not None}
        assert (message, reason) == (expected, choice["finish_reason"])
        own = [
            one for chunk in chunks for one in chunk["choices"] if one["index"] == choice["index"]
        ]
        ids = [token for one in own for token in one.get("token_ids", ())]
        scores = [token for one in own for token in (one["logprobs"] or {}).get("content", ())]
        assert ids == choice["token_ids"]
        assert scores == choice["logprobs"]["content"]
    # Ids follow from the request's, choice by choice, and are each call's own.
    ids = [
        call["id"]
        for choice in whole["choices"]
        for call in choice["message"].get("tool_calls", ())
    ]
    again = post(client, **body)["choices"]
    assert ids == [
        call["id"] for choice in again for call in choice["message"].get("tool_calls", ())
    ]
    assert len({*ids}) == len(ids)
    if ids:
        other = post(client, **body | {"request_id": "other"})["choices"]
        assert ids[0] != other[0]["message"]["tool_calls"][0]["id"]


def test_a_call_that_is_cut_off_is_content(make_client):
    client = make_client(fake(CALL), tool_call_parser="hermes")
    [one] = post(client, max_tokens=30)["choices"]
    assert one["message"]["content"] == CALL[:30]
    assert one["finish_reason"] == "length"


@pytest.mark.parametrize(
    "fields",
    [{"tool_choice": "none"}, {"tools": []}, {"response_format": {"type": "json_object"}}],
)
def test_calls_are_not_looked_for_where_there_can_be_none(make_client, fields):
    client = make_client(fake(CALL), tool_call_parser="hermes")
    [one] = post(client, **fields)["choices"]
    assert (one["message"]["content"], one["finish_reason"]) == (CALL, "stop")


def test_only_what_is_allowed_is_a_call(make_client):
    engine = fake(f"{SAY}")
    client = make_client(engine, tool_call_parser="hermes")
    [one] = post(client, tool_choice=allowed("auto", "say"))["choices"]
    assert [call["function"]["name"] for call in one["message"]["tool_calls"]] == ["say"]
    [one] = post(client, tool_choice=allowed("auto", "get_weather"))["choices"]
    assert one["message"]["content"] == SAY
    # The prompt is the same, so that what is cached of it serves for both; forced are these alone.
    post(client, tool_choice=allowed("required", "say", "say"))
    [option] = json.loads(constraint_of(engine.seen[-1])[1])["items"]["anyOf"]
    assert option["properties"]["name"]["const"] == "say"
    assert len({*map(tuple, engine.prompts)}) == 1


def test_one_call_at_most(make_client):
    client = make_client(fake(SAY + CALL), tool_call_parser="hermes")
    [one] = post(client, parallel_tool_calls=False)["choices"]
    assert [call["function"]["name"] for call in one["message"]["tool_calls"]] == ["say"]


@pytest.mark.parametrize(
    ("sign", "text"),
    [
        ("<tool_call>", CALL),
        ("[TOOL_CALLS]", '[TOOL_CALLS] [{"name": "say", "arguments": {}}]'),
        (
            '{"name": function name, "parameters": dictionary of argument name and its value}',
            '<|python_tag|>{"name": "say", "parameters": {}}',
        ),
        ("", '{"name": "say", "parameters": {}}'),
    ],
)
def test_the_parser_follows_from_the_template(make_client, sign, text):
    engine = fake(text, template=f"{{# {sign} #}}{TEMPLATE}")
    [one] = post(make_client(engine))["choices"]
    [call] = one["message"]["tool_calls"]
    assert len(call["id"]) == (9 if sign == "[TOOL_CALLS]" else 29)
    # Of another family it is content.
    other = "mistral" if sign != "[TOOL_CALLS]" else "hermes"
    [one] = post(make_client(engine, tool_call_parser=other))["choices"]
    assert one["message"]["content"] == text


def test_marks_that_are_special_tokens_are_seen(make_client):
    """The fake's special tokens are <|endoftext|>, <|im_start|> and <|im_end|>."""
    engine = fake("a\x02b", template=None)
    engine.tokenizer = byte_tokenizer("{# <tool_call> #}{{ tools }}")
    assert post(make_client(engine))["choices"][0]["message"]["content"] == "ab"
    assert engine.seen[-1].skip_special_tokens
    tokenizer = byte_tokenizer("{# <tool_call> #}{{ tools }} ")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>"]})
    engine.tokenizer = tokenizer
    post(make_client(engine))
    assert not engine.seen[-1].skip_special_tokens
