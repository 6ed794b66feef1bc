"""The body of ``POST /v1/chat/completions``, and the call it amounts to."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from detinfer.errors import RequestError
from detinfer.server.call import sampling_params
from detinfer.server.protocol import (
    MAX_ENTRIES,
    Neutral,
    StrictBody,
    at_most,
    exactly_one,
    shown,
)
from detinfer.server.protocol_native import Tokens
from detinfer.server.protocol_openai import (
    Logprobs,
    OpenAIBody,
    OpenAICall,
    sampling_values,
    streaming,
)


def _text_of(content: object) -> str:
    """A message's text: a string, or the lines of its text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise PydanticCustomError("content", "expected a string or a list of text parts")
    texts = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind != "text":
            context = {"place": place, "kind": shown(kind)}
            raise PydanticCustomError(
                "content", 'part {place} is {kind}, only "text" is supported', context
            )
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            context = {"place": place, "shape": '{"type": "text", "text": "…"}'}
            raise PydanticCustomError("content", "expected part {place} to be {shape}", context)
        texts.append(part["text"])
    return "\n".join(texts)


_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]}


class ChatMessage(StrictBody):
    """One message; the model's template decides which roles it knows."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, PlainValidator(_text_of), WithJsonSchema(_CONTENT)] = Field(
        description="text, or text parts, which become lines"
    )
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[Any, Neutral([])] = None
    function_call: Annotated[Any, Neutral()] = None
    refusal: Annotated[Any, Neutral()] = None
    audio: Annotated[Any, Neutral()] = None
    annotations: Annotated[Any, Neutral([])] = None


ChatMessages = Annotated[
    list[ChatMessage],
    Field(fail_fast=True, json_schema_extra={"minItems": 1, "maxItems": MAX_ENTRIES}),
    at_most(MAX_ENTRIES),
]
TemplateOptions = Annotated[dict[str, str | bool | int | float | None], at_most(64)]


class ChatCompletionRequest(OpenAIBody):
    """The body of ``POST /v1/chat/completions``."""

    several_types: ClassVar[dict[str, str]] = {
        **StrictBody.several_types,
        "chat_template_kwargs": "an object of at most 64 strings, numbers and booleans",
    }

    model_config = ConfigDict(json_schema_extra=exactly_one("messages"))

    messages: ChatMessages | None = None
    max_completion_tokens: Tokens | None = Field(
        None, description="what the model's length leaves unless given"
    )
    max_tokens: Tokens | None = Field(None, description="older name of max_completion_tokens")
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = Field(None, description="only with logprobs")
    chat_template_kwargs: TemplateOptions | None = Field(
        None, description="variables of the model's chat template"
    )
    prompt_cache_key: str | None = Field(None, description="ignored")
    safety_identifier: str | None = Field(None, description="ignored")
    tools: Annotated[Any, Neutral([])] = None
    tool_choice: Annotated[Any, Neutral("none")] = None
    functions: Annotated[Any, Neutral([])] = None
    function_call: Annotated[Any, Neutral("none")] = None
    parallel_tool_calls: Annotated[Any, Neutral(True, False)] = None
    modalities: Annotated[Any, Neutral(["text"])] = None
    audio: Annotated[Any, Neutral()] = None
    prediction: Annotated[Any, Neutral()] = None
    reasoning_effort: Annotated[Any, Neutral()] = None
    verbosity: Annotated[Any, Neutral()] = None
    web_search_options: Annotated[Any, Neutral()] = None
    service_tier: Annotated[Any, Neutral("auto", "default")] = None
    add_generation_prompt: Annotated[Any, Neutral(True)] = None
    continue_final_message: Annotated[Any, Neutral(False)] = None
    add_special_tokens: Annotated[Any, Neutral(False)] = None
    chat_template: Annotated[Any, Neutral()] = None
    documents: Annotated[Any, Neutral([])] = None
    echo: Annotated[Any, Neutral(False)] = None


def chat_call(
    body: ChatCompletionRequest, prompt_token_ids: list[int], default_deterministic: bool
) -> OpenAICall:
    """Resolve defaults, around the messages as the model's template spells them.

    Raises:
        RequestError: a value out of range, or fields that do not go together.
    """
    values, sources = sampling_values(body, default_deterministic)
    given = [
        name for name in ("max_completion_tokens", "max_tokens") if getattr(body, name) is not None
    ]
    if len(given) == 2 and body.max_tokens != body.max_completion_tokens:
        raise RequestError(
            f"max_tokens: got {body.max_tokens} beside max_completion_tokens = "
            f"{body.max_completion_tokens}, expected one of them",
            "max_tokens",
        )
    if given:
        sources["max_tokens"] = given[0]
    values["max_tokens"] = getattr(body, given[0]) if given else None
    if body.top_logprobs and not body.logprobs:
        raise RequestError(
            f"top_logprobs: got {body.top_logprobs} without logprobs, expected logprobs = true",
            "top_logprobs",
        )
    values["logprobs"] = (body.top_logprobs or 0) if body.logprobs else None
    sources["logprobs"] = "top_logprobs"
    sources["prompt"] = "messages"
    params = sampling_params(values, sources)
    return OpenAICall(
        prompts=[prompt_token_ids],
        prompt_field="messages",
        params=params,
        sources=sources,
        **streaming(body),
    )
