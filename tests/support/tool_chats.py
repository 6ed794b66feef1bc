"""What the tests of tools in chats share: tools, a template, engines, a stream put together."""

from __future__ import annotations

from dataclasses import replace

from constrained import PERSON, AsciiRunner
from fake_engine import INFO, FakeEngine, byte_tokenizer
from streams import events
from tiny_engine import TinyEngine

from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.runner.fingerprint import PARTS, Fingerprint

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
# Writes tools and calls as short as can be.
TEMPLATE = """\
{%- for tool in tools or [] %}{{ tool.function.name }};{% endfor %}
{%- for message in messages %}{{ message.role[0] }}:{{ message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<' + call.id + ' ' + call.function.name + ' ' + call.function.arguments.city + '>' }}
{%- endfor %}{{ message.name }}{{ message.tool_call_id }}|{% endfor %}"""


def tool(name="get_weather", parameters=PERSON, **more):
    function = {"name": name, "parameters": parameters, **more}
    return {"type": "function", "function": function}


def named(name):
    return {"type": "function", "function": {"name": name}}


def allowed(mode, *names):
    tools = {"mode": mode, "tools": [named(name) for name in names]}
    return {"type": "allowed_tools", "allowed_tools": tools}


# As ``/v1/responses`` has them.
RESPONSES_TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
    },
    "strict": True,
}  # fmt: skip

TOOLS = [tool(), tool("say", None, description="Says nothing.")]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"name": "é", "age": 3}}\n</tool_call>'
SAY = '<tool_call>\n{"name": "say"}\n</tool_call>'
ARGUMENTS = '{"name": "é", "age": 3}'


def fake(script="", template=TEMPLATE, **options):
    engine = FakeEngine(script=script.encode() + b"\0", chat_template=template, **options)
    engine.info = replace(INFO, max_model_len=1 << 16, num_pages=1024)
    return engine


def post(client, **body):
    response = client.post(CHAT, {"messages": HI, "tools": TOOLS, **body})
    assert response.status_code == 200, response.text
    return events(response.text) if body.get("stream") else response.json()


def without_ids(calls):
    return [{name: value for name, value in call.items() if name != "id"} for call in calls]


def assembled(chunks, index=0):
    """What OpenAI's clients make of a stream's deltas: the message, and why it ended."""
    message, calls, reason = {}, [], None
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            for name, value in choice["delta"].items():
                if name == "tool_calls":
                    [piece] = value
                    place, function = piece["index"], piece["function"]
                    if place == len(calls):
                        assert piece.keys() == {"index", "id", "type", "function"}
                        assert function.keys() == {"name", "arguments"}
                        assert function["arguments"] == ""
                        calls.append({name: piece[name] for name in ("id", "type", "function")})
                    else:
                        assert place == len(calls) - 1
                        assert piece.keys() == {"index", "function"}
                        assert function.keys() == {"arguments"}
                        calls[-1]["function"]["arguments"] += function["arguments"]
                elif value is not None:
                    message[name] = message.get(name, "") + value
            reason = reason or choice["finish_reason"]
    return (message | {"tool_calls": calls} if calls else message), reason


def constrained_engine():
    """A real engine over a tiny model, whose tokenizer grammars compile for."""
    runner = AsciiRunner()
    runner.tokenizer = byte_tokenizer(TEMPLATE, size=128)
    made = TinyEngine(engine=Engine(EngineConfig(), runner))
    fingerprint = Fingerprint(dict.fromkeys(PARTS, "x") | {"contract": "portable-1"})
    made.info = made._engine.info = replace(
        made.info,
        fingerprint=dict(fingerprint.parts),
        system_fingerprint=fingerprint.system_fingerprint,
    )
    return made
