"""Tool calls through the ``openai`` SDK: openai_tools_client.py URL."""

from __future__ import annotations

import json
import sys
from typing import Literal

import openai
from openai import OpenAI
from pydantic import BaseModel, Field


class GetWeather(BaseModel):
    """Tells the weather in a city."""

    city: Literal["Paris", "Rome", "Oslo"]
    unit: Literal["celsius", "fahrenheit"]


class Add(BaseModel):
    """Adds two numbers."""

    a: int = Field(ge=0, le=99)
    b: int = Field(ge=0, le=99)


KINDS = {"GetWeather": GetWeather, "Add": Add}
TOOLS = [openai.pydantic_function_tool(kind) for kind in KINDS.values()]
ASK = {"tools": TOOLS, "temperature": 0, "max_tokens": 200}
QUESTION = [{"role": "user", "content": "How warm is it in Rome, and what is 3 plus 4?"}]


def chosen(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


def streamed(client: OpenAI, **ask: object) -> tuple[dict, str, str]:
    """A stream's message, put together by hand, why it ended and its digest."""
    content, calls = "", []
    for chunk in client.chat.completions.create(stream=True, **ask):
        [choice] = chunk.choices
        content += choice.delta.content or ""
        for piece in choice.delta.tool_calls or ():
            if piece.index == len(calls):
                assert piece.type == "function"
                assert piece.function.arguments == ""
                calls.append([piece.id, piece.function.name, ""])
            else:
                assert (piece.index, piece.id) == (len(calls) - 1, None)
            calls[-1][2] += piece.function.arguments
    return {"content": content, "calls": calls}, choice.finish_reason, choice.digest


def check_loop(client: OpenAI, model: str) -> None:
    """Two tools, each forced in its turn; what they give comes back; then the model answers."""
    messages: list = list(QUESTION)
    for name, result in (("GetWeather", "18 degrees"), ("Add", "7")):
        ask = {"model": model, "messages": messages, **ASK, "tool_choice": chosen(name)}
        extra = {"request_id": f"loop-{name}"}
        whole = client.chat.completions.create(**ask, extra_body=extra)
        [choice] = whole.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        [call] = choice.message.tool_calls
        assert call.function.name == name
        KINDS[name].model_validate_json(call.function.arguments)
        message, reason, digest = streamed(client, **ask, extra_body=extra)
        assert message == {"content": "", "calls": [[call.id, name, call.function.arguments]]}
        assert (reason, digest) == ("tool_calls", choice.digest)
        messages += [
            choice.message,
            {"role": "tool", "tool_call_id": call.id, "content": result},
        ]
    ask = {"model": model, "messages": messages, **ASK, "tool_choice": "none"}
    whole = client.chat.completions.create(**ask)
    [choice] = whole.choices
    assert choice.message.content
    assert choice.message.tool_calls is None
    message, reason, digest = streamed(client, **ask)
    assert message == {"content": choice.message.content, "calls": []}
    assert (reason, digest) == (choice.finish_reason, choice.digest)


def check_required(client: OpenAI, model: str) -> None:
    """Any of the tools, in every choice; each has its digest, its seed and its receipt."""
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, tools=TOOLS, tool_choice="required", n=4, seed=7,
        parallel_tool_calls=False, max_tokens=200, extra_body={"receipt": True},
    )  # fmt: skip
    root = client.with_options(base_url=str(client.base_url).removesuffix("v1/"))
    ids = set()
    for choice in answer.choices:
        [call] = choice.message.tool_calls
        KINDS[call.function.name].model_validate_json(call.function.arguments)
        ids.add(call.id)
        assert choice.receipt["answer"]["digest"] == choice.digest
        assert "json_schema" in choice.receipt["parameters"]
        assert root.post("/verify", body=choice.receipt, cast_to=object)["match"]
    assert len(ids) == 4


def check_auto(client: OpenAI, model: str) -> None:
    """What the model says of its own accord is a call or content; nothing is lost either way."""
    ask = {"model": model, "messages": QUESTION, **ASK, "extra_body": {"request_id": "auto"}}
    [choice] = client.chat.completions.create(**ask).choices
    message, reason, digest = streamed(client, **ask)
    calls = [
        [call.id, call.function.name, call.function.arguments]
        for call in choice.message.tool_calls or ()
    ]
    assert message == {"content": choice.message.content or "", "calls": calls}
    assert (reason, digest) == (choice.finish_reason, choice.digest)
    assert (reason == "tool_calls") == bool(calls)


def check_helpers(client: OpenAI, model: str) -> None:
    """``parse`` and ``stream`` make objects of the arguments; their messages can be sent back."""
    ask = {"model": model, "messages": QUESTION, **ASK, "tool_choice": chosen("Add")}
    [choice] = client.chat.completions.parse(**ask).choices
    [call] = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Add)
    deltas, done = "", []
    with client.chat.completions.stream(**ask) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                deltas += event.arguments_delta
            elif event.type == "tool_calls.function.arguments.done":
                done.append(event)
        final = stream.get_final_completion().choices[0]
    [event] = done
    assert event.name == "Add"
    assert event.parsed_arguments == call.function.parsed_arguments
    assert deltas == event.arguments == call.function.arguments
    assert json.loads(deltas) == call.function.parsed_arguments.model_dump()
    for message in (choice.message, final.message):
        answered = {
            "role": "tool",
            "tool_call_id": message.tool_calls[0].id,
            "content": [{"type": "text", "text": "7"}],
        }
        again = client.chat.completions.create(
            model=model, messages=[*QUESTION, message, answered], max_tokens=4
        )
        assert again.choices[0].message.content is not None


def check_responses(client: OpenAI, model: str) -> None:
    """The same over /v1/responses: a forced call, whole and streamed, and what it gave back."""
    ask = {
        "model": model,
        "tools": [{"type": "function", **one["function"]} for one in TOOLS],
        "temperature": 0,
        "max_output_tokens": 200,
        "extra_body": {"request_id": "responses"},
    }
    forced = {"type": "function", "name": "GetWeather"}
    first = client.responses.create(input=QUESTION, tool_choice=forced, **ask)
    [call] = first.output
    GetWeather.model_validate_json(call.arguments)
    events = list(client.responses.create(input=QUESTION, tool_choice=forced, stream=True, **ask))
    deltas = [one.delta for one in events if one.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    assert events[-1].response.output == first.output
    assert events[-1].response.digest == first.digest
    with client.responses.stream(input=QUESTION, tool_choice=forced, **ask) as stream:
        assert [one.type for one in stream][-1] == "response.completed"
        assert stream.get_final_response().output[0].arguments == call.arguments
    gave = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}
    last = client.responses.create(
        input=[*QUESTION, *first.output, gave], tool_choice="none", **ask
    )
    assert last.output_text


def main() -> None:
    client = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=120)
    model = client.models.list().data[0].id
    checks = [check_loop, check_required, check_auto, check_helpers, check_responses]
    for check in checks:
        check(client, model)
    print(f"openai SDK: {len(checks)} checks of tool calls passed with {model}")


if __name__ == "__main__":
    main()
