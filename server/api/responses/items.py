"""Input items of ``POST /v1/responses`` become the messages of a chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from detinfer.server.api.bodies.fields import MAX_ENTRIES
from detinfer.server.api.bodies.strict import shown

Item = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")
# What outputs have beside what they say; clients hand them back as they are.
_LEFT = {"type", "id", "status", "phase", "parsed", "parsed_arguments"}
_TEXTS = ("input_text", "output_text", "reasoning_text", "text")


def messages_of(value: Any) -> list[Item]:
    """Return a text, or a list of items, as messages.

    Raises:
        PydanticCustomError: an item that is none, or not supported; its place and why.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise _complaint("expected a string or a list of items")
    if not 1 <= len(value) <= MAX_ENTRIES:
        raise _complaint(f"expected 1 to {MAX_ENTRIES} items, got {len(value)}")
    messages: list[Item] = []
    for place, item in enumerate(value):
        if not isinstance(item, dict):
            raise _complaint(f"item {place} is {shown(item)}, expected an object")
        kind = item.get("type") or "message"
        read = _KINDS.get(kind) if isinstance(kind, str) else None
        if read is None:
            expected = ", ".join(_KINDS)
            raise _complaint(f"item {place} is {shown(kind)}, expected one of {expected}")
        read(f"item {place}", item, messages)
    return messages


def _message(where: str, item: Item, messages: list[Item]) -> None:
    _only(where, item, "role", "content")
    role, content = item.get("role"), _text(where, item.get("content"))
    if role not in _ROLES:
        raise _complaint(f"{where} has the role {shown(role)}, expected one of {', '.join(_ROLES)}")
    last = messages[-1] if messages else {}
    if role == "assistant" and {*last} == {"role", "content", "reasoning_content"}:
        last["content"] = content  # it is what that reasoning came to
    else:
        messages.append({"role": role, "content": content})


def _function_call(where: str, item: Item, messages: list[Item]) -> None:
    _only(where, item, "call_id", "name", "arguments", "namespace", "caller", "async")
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _function_call_output(where: str, item: Item, messages: list[Item]) -> None:
    _only(where, item, "call_id", "output")
    content = _text(where, item.get("output"))
    messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})


def _reasoning(where: str, item: Item, messages: list[Item]) -> None:
    _only(where, item, "summary", "content", "encrypted_content")
    text = _text(where, item.get("content") or "")
    messages.append({"role": "assistant", "content": None, "reasoning_content": text})


def _text(where: str, content: Any) -> str:
    """Return a string, or the lines of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _complaint(f"{where} has the content {shown(content)}, expected text or text parts")
    texts = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind not in _TEXTS:
            raise _complaint(
                f"{where} has {shown(kind)} as part {place}, expected input_text or output_text"
            )
        _only(f"{where}, part {place}", part, "text", "annotations", "logprobs")
        if not isinstance(part.get("text"), str):
            raise _complaint(f"{where} has no text in part {place}")
        texts.append(part["text"])
    return "\n".join(texts)


def _only(where: str, item: Mapping[str, Any], *known: str) -> None:
    for name in item:
        if name not in _LEFT and name not in known:
            raise _complaint(f"{where} has the unknown field {shown(name)}")


def _complaint(message: str) -> PydanticCustomError:
    return PydanticCustomError("input_items", "{message}", {"message": message})


_KINDS: dict[str, Callable[[str, Item, list[Item]], None]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
}
