"""Tools in plain words, for models whose chat template writes none.

The marks are those of Hermes' prompt format, which Qwen's templates have too: ``<tools>`` in the
system message, calls in ``<tool_call>``, what they gave in ``<tool_response>``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

_PROBE = "probe_of_tools"
_WORDS = """# Tools

Functions that you may call are described here, each by a line of JSON:
<tools>
{tools}
</tools>

To call a function, give its name and its arguments as a JSON object in this form:
<tool_call>
{{"name": <name of the function>, "arguments": <object of its arguments>}}
</tool_call>"""


@lru_cache(maxsize=4)
def knows_tools(tokenizer: Any) -> bool:
    """Return whether the chat template writes the tools it is given, which is tried with one."""
    function = {
        "name": _PROBE,
        "description": _PROBE,
        "parameters": {"type": "object", "properties": {}},
    }
    return _writes_probe(tokenizer, tools=[{"type": "function", "function": function}])


@lru_cache(maxsize=4)
def knows_system(tokenizer: Any) -> bool:
    """Return whether the chat template writes a system message, which some refuse."""
    return _writes_probe(tokenizer, {"role": "system", "content": _PROBE})


def _writes_probe(tokenizer: Any, *messages: Message, **options: Any) -> bool:
    conversation = [*messages, {"role": "user", "content": "-"}]
    try:
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True, **options
        )
    except Exception:  # whatever a template may run into
        return False
    return _PROBE in text


def has_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
    """Return whether there is anything of tools to tell."""
    return bool(tools) or any(
        message.get("role") == "tool" or message.get("tool_calls") for message in messages
    )


def in_plain_words(
    messages: Sequence[Message], tools: Sequence[Tool], system: bool = True
) -> list[Message]:
    """Spell tools, calls and what they gave as text of system, assistant and user.

    Args:
        messages: calls as templates have them, their arguments as objects.
        tools: with name, description and parameters.
        system: whether there may be a system message; else the first of a user tells of tools.
    """
    spelled: list[Message] = []
    answering = False  # whether the last one has what calls gave: one message for all of them
    for message in messages:
        content = str(message.get("content") or "")
        if message.get("role") == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if answering:
                content = f"{spelled.pop()['content']}\n{content}"
            spelled.append({"role": "user", "content": content})
            answering = True
            continue
        answering = False
        calls = [_spelled(call["function"]) for call in message.get("tool_calls") or ()]
        rest = {name: value for name, value in message.items() if name != "tool_calls"}
        spelled.append(rest | {"content": "\n".join([content] * bool(content) + calls)})
    if not tools:
        return spelled
    words = _WORDS.format(tools="\n".join(_json(tool) for tool in tools))
    first = spelled[0] if spelled else {}
    if first.get("role") == "system":
        return [{**first, "content": f"{first['content']}\n\n{words}"}, *spelled[1:]]
    if not system and first.get("role") == "user":
        return [{**first, "content": f"{words}\n\n{first['content']}"}, *spelled[1:]]
    return [{"role": "system" if system else "user", "content": words}, *spelled]


def _spelled(function: Mapping[str, Any]) -> str:
    called = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{_json(called)}\n</tool_call>"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
