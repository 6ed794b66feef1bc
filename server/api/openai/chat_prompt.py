"""A call's messages, checked, as the model's chat template spells them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from detinfer.chat_template import Rendering, chat_text, encode_chat
from detinfer.engine.async_engine import AsyncEngine
from detinfer.errors import RequestError
from detinfer.server.api.bodies.strict import shown
from detinfer.server.api.openai.chat_body import ChatMessage
from detinfer.server.tokenizing import aside, check_length


async def render(
    engine: AsyncEngine,
    messages: Sequence[ChatMessage] | None,
    rendering: Rendering,
) -> list[int]:
    """Spell the messages as the model's template does; it writes every special token itself.

    Args:
        engine: its tokenizer has the template, which transformers runs in a sandbox.
        messages: at least one.
        rendering: how the template is to spell them.

    Raises:
        RequestError: no messages, no template, what the template says against them, or more text
            than the model's length can hold, before the template runs and before it is tokenised.
    """
    tokenizer = engine.tokenizer
    if not messages:
        got = "missing" if messages is None else "got an empty list"
        raise RequestError(f"messages: {got}, expected at least one message", "messages")
    if not tokenizer.chat_template:
        raise RequestError(
            "messages: this model has no chat template, use /v1/completions", "messages"
        )
    options = rendering.options
    _check_options(tokenizer, options)
    _check_answers(messages)
    called: dict[str, str] = {}
    conversation = [_plain(message, called) for message in messages]
    # A message costs some work however short it is; what an option is for, only templates know.
    size = sum(_size(value) + 40 for message in conversation for value in message.values())
    size += sum(len(str(option)) for option in options.values())
    told = _size(list(rendering.tools))
    written = sum(len(message["content"]) for message in conversation)
    check_length(engine, written, "messages")
    check_length(engine, told, "tools")
    size += told
    text = await aside(size, chat_text, tokenizer, conversation, rendering)
    check_length(engine, len(text), "messages")
    return await aside(len(text), encode_chat, tokenizer, text, rendering)


def _check_answers(messages: Sequence[ChatMessage]) -> None:
    """Refuse calls by others than the assistant, and what answers a call that was not made.

    Raises:
        RequestError: naming the message's field.
    """
    called: set[str] = set()
    for place, message in enumerate(messages):
        if message.tool_calls:
            if message.role != "assistant":
                field = f"messages.{place}.tool_calls"
                raise RequestError(f"{field}: got them of a {message.role}, expected none", field)
            called.update(call.id for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in called:
            field, got = f"messages.{place}.tool_call_id", shown(message.tool_call_id)
            raise RequestError(f"{field}: got {got}, expected the id of a call before it", field)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else len(json.dumps(value, ensure_ascii=False))


def _plain(message: ChatMessage, called: dict[str, str]) -> dict[str, Any]:
    """Return a message as templates read it.

    Args:
        message: one of a chat.
        called: names of the functions that were called so far, by the ids of their calls.
    """
    given = message.model_dump(include={"role", "content", "name", "tool_call_id"})
    # Templates of models that reason read either.
    given["reasoning_content"] = given["reasoning"] = (
        message.reasoning if message.reasoning is not None else message.reasoning_content
    )
    if message.tool_calls:
        given["tool_calls"] = [call.for_template() for call in message.tool_calls]
        called |= {call.id: call.function.name for call in message.tool_calls}
    if given["role"] == "tool" and given["name"] is None:  # some templates want it
        given["name"] = called.get(message.tool_call_id or "")
    # OpenAI's newer name of the same role, which templates do not know.
    if given["role"] == "developer":
        given["role"] = "system"
    return {name: value for name, value in given.items() if value is not None}


def _check_options(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Variables only: the method's own arguments would change how, or what, it renders."""
    own = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in options:
        if name in own or name == "messages" or not name.isidentifier():
            field = f"chat_template_kwargs.{name[:64]}"
            raise RequestError(f"{field}: expected the name of a template variable", field)
