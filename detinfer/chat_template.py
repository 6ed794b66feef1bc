"""From messages to token ids, through the chat template that the model brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detinfer.errors import RequestError
from detinfer.plain_tools import has_tools, in_plain_words, knows_system, knows_tools

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Rendering:
    """How a template is to spell messages.

    Attributes:
        options: further variables of the template.
        add_generation_prompt: end with what begins the assistant's answer.
        continue_final_message: end inside the last message.
        add_special_tokens: whether the tokenizer adds its own, beside those that the template
            writes.
        tools: what the model may call, as OpenAI has them; in plain words where the template knows
            of none.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    tools: Sequence[Mapping[str, Any]] = ()


def render_chat(
    tokenizer: Any, messages: Sequence[Message], rendering: Rendering | None = None
) -> list[int]:
    """Return the token ids of ``chat_text``.

    Raises:
        RequestError: as ``chat_text``.
    """
    rendering = rendering or Rendering()
    return encode_chat(tokenizer, chat_text(tokenizer, messages, rendering), rendering)


def encode_chat(tokenizer: Any, text: str, rendering: Rendering) -> list[int]:
    """Token ids of what a template wrote, special tokens and all."""
    return list(tokenizer.encode(text, add_special_tokens=rendering.add_special_tokens))


def chat_text(tokenizer: Any, messages: Sequence[Message], rendering: Rendering) -> str:
    """Spell the messages as the model's template does; it writes every special token itself.

    Args:
        tokenizer: has the template, which transformers runs in a sandbox.
        messages: each with a ``role`` and a ``content``; calls with their arguments as objects.
        rendering: how it is to spell them.

    Raises:
        RequestError: no messages, no template, or what the template says against them.
    """
    if not messages:
        raise RequestError("messages: got an empty list, expected at least one message", "messages")
    if not tokenizer.chat_template:
        raise RequestError("messages: this model has no chat template", "messages")
    text = "".join(str(value) for message in messages for value in message.values())
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError("messages: got text that is not valid UTF-8", "messages")
    tools = rendering.tools
    if has_tools(messages, tools) and not knows_tools(tokenizer):
        messages, tools = in_plain_words(messages, tools, knows_system(tokenizer)), ()
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=rendering.add_generation_prompt,
                continue_final_message=rendering.continue_final_message,
                **({"tools": list(tools)} if tools else {}),
                **rendering.options,
            )
        )
    except Exception as error:  # whatever a template may run into
        lines = str(error).strip().splitlines()
        reason = lines[0][:150] if lines else type(error).__name__
        raise RequestError(
            f"messages: the model's chat template refuses them: {reason}", "messages"
        ) from error
