"""A call's messages, checked, as the model's chat template spells them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from detinfer.chat_template import Rendering, chat_text, encode_chat
from detinfer.engine.async_engine import AsyncEngine
from detinfer.errors import RequestError
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
    conversation = [_plain(message) for message in messages]
    # A message costs some work however short it is; what an option is for, only templates know.
    size = sum(len(text) + 40 for message in conversation for text in message.values())
    size += sum(len(str(option)) for option in options.values())
    written = sum(len(message["content"]) for message in conversation)
    check_length(engine, written, "messages")
    text = await aside(size, chat_text, tokenizer, conversation, rendering)
    check_length(engine, len(text), "messages")
    return await aside(len(text), encode_chat, tokenizer, text, rendering)


def _plain(message: ChatMessage) -> dict[str, str]:
    given = message.model_dump(include={"role", "content", "name", "tool_call_id"})
    # Templates of models that reason read either.
    given["reasoning_content"] = given["reasoning"] = (
        message.reasoning if message.reasoning is not None else message.reasoning_content
    )
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
