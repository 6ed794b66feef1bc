"""Tools on ``/v1/chat/completions``: what is refused, by field."""

from __future__ import annotations

import pytest
from tool_chats import (
    CHAT,
    HI,
    TEMPLATE,
    TOOLS,
    allowed,
    constrained_engine,
    fake,
    named,
    post,
    tool,
)


@pytest.fixture(scope="module")
def engine():
    return constrained_engine()


def called(arguments="{}", **more):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [*HI, {"role": "assistant", "content": None, "tool_calls": [call | more]}]


def answered(**fields):
    return [*called(), {"role": "tool", "content": "x", **fields}]


def many_calls(count):
    """A history of so many calls, 64 a message."""
    [_, message] = called()
    whole = {**message, "tool_calls": message["tool_calls"] * 64}
    rest = {**message, "tool_calls": message["tool_calls"] * (count % 64)}
    return [*HI, *[whole] * (count // 64), rest]


LARGE = {"properties": {f"p{i}": {"enum": ["x" * 100]} for i in range(1000)}}
REFUSED = [
    ({"tools": [{"type": "function"}]}, "tools.0.function", "missing"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "missing"),
    ({"tools": [{"type": "custom"}]}, "tools.0.type", 'got "custom", expected \'function\''),
    ({"tools": [tool(""), tool("b")]}, "tools.0.function.name", "expected 1 to 64 characters of"),
    ({"tools": [tool(), tool("a b")]}, "tools.1.function.name", "expected 1 to 64 characters of"),
    ({"tools": [tool("x" * 65)]}, "tools.0.function.name", "expected 1 to 64 characters of"),
    ({"tools": [tool("a\n")]}, "tools.0.function.name", "expected 1 to 64 characters of"),
    ({"tools": [tool(), tool()]}, "tools.1.function.name", 'got "get_weather" twice'),
    ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools", "got a list, at most 128 entries"),
    ({"tools": [tool(f"f{i}") for i in range(1000)]}, "tools", "got a list, at most 128 entries"),
    ({"tools": [tool(parameters={"type": "array"})]}, "tools.0.function.parameters",
     'expected type "object", not "array"'),
    ({"tools": [tool(parameters=5)]}, "tools.0.function.parameters", "got 5, expected an object"),
    ({"tools": [tool(strickt=True)]}, "tools.0.function.strickt", "did you mean strict?"),
    ({"tools": TOOLS, "tool_choice": named("nobody")}, "tool_choice", 'got "nobody", expected'),
    ({"tool_choice": named("f")}, "tool_choice", 'got "f", expected the name of one of the tools'),
    ({"tools": TOOLS, "tool_choice": allowed("auto", "say", "nobody")}, "tool_choice",
     'got "nobody", expected the name of one of the tools'),
    ({"tools": TOOLS, "tool_choice": allowed("none", "say")}, "tool_choice", "expected auto, none"),
    ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice", "expected auto, none"),
    ({"tool_choice": "required"}, "tool_choice", 'got "required" without tools'),
    ({"tools": [], "tool_choice": "required"}, "tool_choice", 'got "required" without tools'),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "expected auto, none, required or"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice", 'expected {"type": "fu'),
    ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls", "got 1, expected true"),
    ({"messages": answered()}, "messages.2.tool_call_id", "got null, expected the id of a call"),
    ({"messages": answered(tool_call_id="d")}, "messages.2.tool_call_id", 'got "d", expected the'),
    ({"messages": answered(tool_call_id="c")[2:]}, "messages.0.tool_call_id", 'got "c", expected'),
    ({"messages": answered(tool_call_id="c", content=None)}, "messages.2.content", "got null"),
    ({"messages": called("{")}, "messages.1.tool_calls.0.function.arguments",
     'got "{", expected a JSON object, as text'),
    ({"messages": called("[]")}, "messages.1.tool_calls.0.function.arguments", 'got "[]", expec'),
    ({"messages": called({})}, "messages.1.tool_calls.0.function.arguments", "got an object, exp"),
    ({"messages": called(type="custom")}, "messages.1.tool_calls.0.type", 'got "custom"'),
    ({"messages": [{**called()[1], "role": "user", "content": "x"}]}, "messages.0.tool_calls",
     "got them of a user"),
    ({"messages": many_calls(1025)}, "messages", "got a list, at most 1024 calls in all messages"),
    ({"tools": TOOLS, "tool_choice": "required", "structured_outputs": {"regex": "a"}},
     "structured_outputs", "got it beside tool_choice"),
    ({"tools": TOOLS, "tool_choice": named("say"), "guided_regex": "a"}, "guided_regex",
     "got it beside tool_choice"),
    ({"tools": [tool(parameters=LARGE)], "tool_choice": "required"}, "tools",
     "characters, expected 1 to 65536"),
    ({"tools": [tool(description="x" * 1_000_000)]}, "tools", "characters, at most"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field", "message"), REFUSED)
def test_bad_input_is_a_400_that_names_the_field(make_client, body, field, message):
    response = make_client(fake()).post(CHAT, {"messages": HI, **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field), error
    assert message in error["message"]
    assert f"{field}: " in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("keyword", "schema"),
    [
        ("not", {"properties": {"a": {"not": {}}}}),
        ("uniqueItems", {"properties": {"a": {"type": "array", "uniqueItems": True}}}),
        ("nowhere", {"properties": {"a": {"$ref": "#/$defs/nowhere"}}}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_kept_is_a_400_that_names_the_keyword(
    make_client, engine, keyword, schema, stream
):
    body = {"messages": HI, "tools": [tool(parameters=schema)], "stream": stream}
    client = make_client(engine)
    response = client.post(CHAT, body | {"tool_choice": "required"})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "tools")
    assert keyword in error["message"]
    # Where nothing is forced, nothing has to be kept.
    assert client.post(CHAT, body | {"max_tokens": 1}).status_code == 200


def test_as_many_calls_as_may_be(make_client):
    post(make_client(fake(template=TEMPLATE.replace("call.function.arguments.city", "''"))),
         messages=many_calls(1024))  # fmt: skip
