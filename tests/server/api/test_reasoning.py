"""Reasoning on ``/v1/chat/completions``, set apart from content and calls."""

from __future__ import annotations

import pytest
from tool_chats import CALL, TEMPLATE, assembled, fake, post

THOUGHT = "<think>\nHm, 4.\n</think>\n\n"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("parser", "template", "text"),
    [
        ("qwen3", TEMPLATE, THOUGHT),
        ("qwen3", TEMPLATE + "<think>\n", THOUGHT.removeprefix("<think>\n")),
        ("deepseek_r1", TEMPLATE, THOUGHT.removeprefix("<think>")),
    ],
)
def test_reasoning_is_told_apart_from_content_and_calls(
    make_client, parser, template, text, stream
):
    settings = {"reasoning_parser": parser, "tool_call_parser": "hermes"}
    client = make_client(fake(f"{text}Four.{CALL}", template=template), **settings)

    def message(**fields):
        value = post(client, stream=stream, **fields)
        return assembled(value)[0] if stream else value["choices"][0]["message"]

    told = message()
    assert told["reasoning"] == told["reasoning_content"]
    assert told["reasoning"].strip() == "Hm, 4."
    assert told["content"] == "\n\nFour."
    assert len(told["tool_calls"]) == 1
    told = message(include_reasoning=False)
    assert "reasoning" not in told
    assert told["content"] == "\n\nFour."
    told = message(separate_reasoning=False, tools=None)
    assert told["content"] == f"{text}Four.{CALL}"


def test_without_the_flag_nothing_is_set_apart(make_client):
    [one] = post(make_client(fake(THOUGHT)), tools=None)["choices"]
    assert one["message"] == {"role": "assistant", "content": THOUGHT, "refusal": None}


def test_what_a_grammar_constrains_has_no_reasoning(make_client):
    client = make_client(fake("{}"), reasoning_parser="deepseek_r1")
    [one] = post(client, response_format={"type": "json_object"})["choices"]
    assert (one["message"]["content"], one["message"]["reasoning"]) == ("{}", None)
