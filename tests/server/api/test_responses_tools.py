"""Tools and reasoning on ``/v1/responses``: items in, items and events out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_engine import INFO, FakeEngine
from streams import typed_events, unnamed
from tool_chats import RESPONSES_TOOL as TOOL

from detinfer.params import constraint_of

RESPONSES = "/v1/responses"
SAY = {"type": "function", "name": "say"}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "é"}}\n</tool_call>'
# Writes tools and calls as short as can be.
TEMPLATE = """\
{%- for tool in tools or [] %}{{ tool.function.name }};{% endfor %}
{%- for message in messages %}{{ message.role[0] }}:{{ message.reasoning_content }}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<' + call.id + ' ' + call.function.name + ' ' + call.function.arguments.city + '>' }}
{%- endfor %}{{ message.tool_call_id }}|{% endfor %}"""
CALL_EVENTS = [
    "response.output_item.added", "response.function_call_arguments.delta",
    "response.function_call_arguments.done", "response.output_item.done",
]  # fmt: skip


def fake(script: str = "", **options) -> FakeEngine:
    engine = FakeEngine(script=script.encode() + b"\0", chat_template=TEMPLATE, **options)
    engine.info = replace(INFO, max_model_len=1 << 16, num_pages=1024)
    return engine


def ask(client, **body) -> dict:
    answer = client.post(RESPONSES, {"input": "hi", "tools": [TOOL, SAY], "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(client, **body) -> list[dict]:
    more = {"input": "hi", "tools": [TOOL, SAY], "temperature": 0, "stream": True}
    return typed_events(client.post(RESPONSES, {**more, **body}).text)


def kinds(found: list[dict]) -> list[str]:
    return list(dict.fromkeys(one["type"] for one in found))


def test_a_call_is_an_item_that_the_next_turn_hands_back_with_what_it_gave(make_client):
    engine = fake(f"I ask.\n{CALL}")
    client = make_client(engine, tool_call_parser="hermes")
    first = ask(client)
    said, call = first["output"]
    assert said["content"][0]["text"] == "I ask."
    assert unnamed(call) == {
        "type": "function_call", "call_id": call["call_id"], "name": "get_weather",
        "arguments": '{"city": "é"}', "status": "completed",
    }  # fmt: skip
    assert call["id"].startswith("fc_")
    assert call["call_id"].startswith("call_")
    assert (first["status"], first["tool_choice"]) == ("completed", "auto")
    assert first["tools"][0] == {**TOOL, "description": None}
    gave = {"type": "function_call_output", "call_id": call["call_id"], "output": "18"}
    ask(client, input=[{"role": "user", "content": "hi"}, *first["output"], gave])
    made = f"<{call['call_id']} get_weather é>"
    expected = f"get_weather;say;u:hi|a:I ask.{made}|t:18{call['call_id']}|"
    assert bytes(engine.prompts[1]).decode() == expected


def test_a_streams_events_add_up_to_the_whole_answer(make_client):
    client = make_client(fake(f"I ask.\n{CALL}\n{CALL}"), tool_call_parser="hermes")
    name = {"request_id": "mine"}  # ids of calls follow from it
    whole, found = ask(client, **name), streamed(client, **name)
    final = found[-1]
    assert final["type"] == "response.completed"
    assert unnamed(final["response"]) == unnamed(whole)
    assert final["response"]["output"] == whole["output"]
    for place, item in enumerate(whole["output"]):
        own = [one for one in found if one.get("output_index") == place]
        added, *rest, done = own
        assert added["item"]["id"] == done["item"]["id"] == item["id"]
        assert done["item"] == item
        assert {one["item_id"] for one in rest} == {item["id"]}
        if item["type"] == "function_call":
            assert kinds(own) == CALL_EVENTS
            assert (added["item"]["arguments"], added["item"]["status"]) == ("", "in_progress")
            assert added["item"]["call_id"] == item["call_id"]
            deltas = [one["delta"] for one in rest if "delta" in one]
            assert "".join(deltas) == item["arguments"] == rest[-1]["arguments"]
    assert [item["type"] for item in whole["output"]] == ["message", *["function_call"] * 2]
    assert [one["output_index"] for one in found if one["type"] == CALL_EVENTS[0]] == [0, 1, 2]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_forced_call_is_made_by_a_grammar_and_comes_as_it_is_written(make_client, choice):
    engine = fake('[{"name": "get_weather", "arguments": {"city": "Rome"}}]')
    client = make_client(engine)
    whole = ask(client, tool_choice=choice)
    field, schema = constraint_of(engine.seen[0])
    assert (field, json.loads(schema)["type"]) == ("json_schema", "array")
    [call] = whole["output"]
    assert (call["name"], call["arguments"]) == ("get_weather", '{"city": "Rome"}')
    assert whole["tool_choice"] == choice
    found = streamed(client, tool_choice=choice)
    assert sum(one["type"] == CALL_EVENTS[1] for one in found) > 3
    # Cut off, its arguments are a part, and the response says so.
    cut = ask(client, tool_choice=choice, max_output_tokens=48)
    assert (cut["status"], cut["output"][0]["status"]) == ("incomplete", "incomplete")
    assert call["arguments"].startswith(cut["output"][0]["arguments"])


def test_a_format_of_the_text_beside_a_forced_call_changes_nothing(make_client):
    engine = fake('[{"name": "say", "arguments": {}}]')
    client = make_client(engine)
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "integer"}}
    for written in ({}, {"text": {"format": schema}}):
        [call] = ask(client, tool_choice="required", **written)["output"]
        assert call["type"] == "function_call"
    assert len({constraint_of(params) for params in engine.seen}) == 1


def test_calls_that_may_not_be_are_text(make_client):
    whole = ask(make_client(fake(CALL), tool_call_parser="hermes"), tool_choice="none")
    assert [item["type"] for item in whole["output"]] == ["message"]
    assert whole["output"][0]["content"][0]["text"] == CALL


def test_log_probabilities_are_those_of_the_text_not_of_calls(make_client):
    client = make_client(fake(f"I ask.\n{CALL}"), tool_call_parser="hermes")
    whole = ask(client, include=["message.output_text.logprobs"])
    told = whole["output"][0]["content"][0]["logprobs"]
    assert "".join(one["token"] for one in told).startswith("I ask.")
    found = streamed(client, include=["message.output_text.logprobs"])
    deltas = [one for event in found if "delta" in event for one in event.get("logprobs", [])]
    assert deltas == told


def test_reasoning_is_an_item_of_its_own_and_goes_back_to_the_template(make_client):
    engine = fake("<think>Hm. é</think>It is 18.")
    client = make_client(engine, reasoning_parser="qwen3")
    whole = ask(client)
    thought, said = whole["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm. é"}]
    assert (thought["type"], thought["summary"], thought["status"]) == (
        "reasoning",
        [],
        "completed",
    )
    assert said["content"][0]["text"] == "It is 18."
    found = streamed(client)
    assert found[-1]["response"]["output"][0]["content"] == thought["content"]
    deltas = [one for one in found if one["type"] == "response.reasoning_text.delta"]
    assert "".join(one["delta"] for one in deltas) == "Hm. é"
    ask(client, input=[{"role": "user", "content": "hi"}, *whole["output"]], tools=[])
    assert bytes(engine.prompts[-1]).decode() == "u:hi|a:Hm. éIt is 18.|"
    hidden = ask(client, include_reasoning=False)
    assert [item["type"] for item in hidden["output"]] == ["message"]
