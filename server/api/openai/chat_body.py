"""The body of ``POST /v1/chat/completions``, and the call it amounts to."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from detinfer.chat_template import Rendering
from detinfer.errors import RequestError
from detinfer.server.api.bodies.fields import MAX_ENTRIES, Logprobs, Tokens, at_most, needs
from detinfer.server.api.bodies.strict import StrictBody, shown
from detinfer.server.api.openai.common_body import OpenAIBody, OpenAICall, common, sampling_values
from detinfer.server.api.openai.neutral_fields import NeutralChatFields, NeutralMessageFields
from detinfer.server.api.openai.tools.body import FormerCalls, ToolChoice, Tools
from detinfer.server.api.openai.tools.reading import Reading
from detinfer.server.call import sampling_params


def _text_of(content: object, message: ValidationInfo) -> str:
    """Return a message's text: a string, or the lines of its parts; an assistant's may be null."""
    if isinstance(content, str):
        return content
    if content is None and message.data.get("role") == "assistant":
        return ""
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
        if not {"type", "text"} <= set(part) <= _PART_FIELDS or not isinstance(part["text"], str):
            context = {"place": place, "shape": '{"type": "text", "text": "…"}'}
            raise PydanticCustomError("content", "expected part {place} to be {shape}", context)
        texts.append(part["text"])
    return "\n".join(texts)


# What is cached, and for how long, is decided here: the marks are hints.
_CACHE_MARK = {"description": "ignored"}
_PART = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "const": "text"},
        "text": {"type": "string"},
        "cache_control": _CACHE_MARK,
        "prompt_cache_breakpoint": _CACHE_MARK,
    },
    "required": ["type", "text"],
    "additionalProperties": False,
}
_PART_FIELDS = {"type", "text", "cache_control", "prompt_cache_breakpoint"}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]}


class ChatMessage(NeutralMessageFields):
    """One message; the model's template decides which roles it knows."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, PlainValidator(_text_of), WithJsonSchema(_CONTENT)] = Field(
        None,
        validate_default=True,
        description="text, or text parts, which become lines; null only of an assistant",
    )
    reasoning_content: str | None = Field(None, description="an assistant's, for the template")
    reasoning: str | None = Field(None, description="newer name of reasoning_content")
    name: str | None = None
    tool_calls: FormerCalls | None = Field(None, description="an assistant's")
    tool_call_id: str | None = Field(None, description="a tool's: the call that it answers")
    parsed: Any = Field(None, description="ignored: OpenAI's SDK sends it back")
    cache_control: dict[str, Any] | None = Field(None, description="ignored")


def _few_calls(messages: object) -> object:
    """Bound the calls of a whole history before they are read."""
    calls = 0
    for message in messages if isinstance(messages, list) else ():
        own = message.get("tool_calls") if isinstance(message, dict) else None
        calls += len(own) if isinstance(own, list) else 0
    if calls > MAX_ENTRIES:
        raise PydanticCustomError("too_long", f"at most {MAX_ENTRIES} calls in all messages")
    return messages


ChatMessages = Annotated[
    list[ChatMessage],
    Field(fail_fast=True, json_schema_extra={"minItems": 1, "maxItems": MAX_ENTRIES}),
    BeforeValidator(_few_calls),
    at_most(MAX_ENTRIES),
]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
TemplateOptions = Annotated[dict[str, str | bool | int | float | None], at_most(64)]


class ChatCompletionRequest(OpenAIBody, NeutralChatFields):
    """The body of ``POST /v1/chat/completions``."""

    several_types: ClassVar[dict[str, str]] = {
        **StrictBody.several_types,
        "chat_template_kwargs": "an object of at most 64 strings, numbers and booleans",
    }

    model_config = ConfigDict(json_schema_extra=needs("messages"))

    messages: ChatMessages | None = None
    max_completion_tokens: Tokens | None = Field(
        None, description="what the model's length leaves unless given"
    )
    max_tokens: Tokens | None = Field(None, description="older name of max_completion_tokens")
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = Field(None, description="only with logprobs")
    tools: Tools | None = Field(None, description="functions that the model may call")
    tool_choice: ToolChoice = Field(
        None, description="auto unless given; a forced call is one that its schema allows"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most")
    include_reasoning: bool | None = Field(None, description="false leaves reasoning out")
    separate_reasoning: bool | None = Field(None, description="false leaves it in the content")
    chat_template_kwargs: TemplateOptions | None = Field(
        None, description="variables of the model's chat template"
    )
    reasoning_effort: ReasoningEffort | None = Field(
        None, description="a variable of the template; so is enable_thinking, unless it is none"
    )
    add_generation_prompt: bool | None = Field(
        None, description="begin an answer; true unless the last message is to be continued"
    )
    continue_final_message: bool | None = Field(
        None, description="answer with what the last message continues with"
    )
    echo: bool | None = Field(None, description="begin with the assistant's message, if it is last")


def rendering(body: ChatCompletionRequest) -> Rendering:
    """Return how the messages become a prompt.

    Raises:
        RequestError: fields that do not go together.
    """
    effort = body.reasoning_effort
    options: dict[str, Any] = {}
    if effort is not None:  # as vLLM has it
        options = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    begins = begins_answer(body.add_generation_prompt, body.continue_final_message)
    return Rendering(
        options | (body.chat_template_kwargs or {}),
        add_generation_prompt=begins,
        continue_final_message=bool(body.continue_final_message),
        add_special_tokens=bool(body.add_special_tokens),
        tools=[tool.for_template() for tool in body.tools or ()],
    )


def begins_answer(add_generation_prompt: bool | None, continue_final_message: bool | None) -> bool:
    """Return whether the template is to begin an answer.

    Raises:
        RequestError: the last message is to be continued too.
    """
    if add_generation_prompt and continue_final_message:
        raise RequestError(
            "continue_final_message: got true with add_generation_prompt = true, expected one",
            "continue_final_message",
        )
    return not continue_final_message and add_generation_prompt is not False


def chat_call(
    body: ChatCompletionRequest,
    prompt_token_ids: list[int],
    default_deterministic: bool,
    reading: Reading,
    calls: str | None,
) -> OpenAICall:
    """Resolve defaults, around the messages as the model's template spells them.

    Args:
        body: what was asked for.
        prompt_token_ids: its messages.
        default_deterministic: what holds unless it says so.
        reading: of the answers.
        calls: the schema that forces calls, if they are to be forced.

    Raises:
        RequestError: a value out of range, or fields that do not go together.
    """
    values, sources = sampling_values(body, default_deterministic)
    reading.prepare(values, sources, calls)
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
    values["prompt_logprobs"] = body.prompt_logprobs
    values["logprobs"] = (body.top_logprobs or 0) if body.logprobs else None
    sources["logprobs"] = "top_logprobs"
    params = sampling_params(values, sources)
    last = body.messages[-1] if body.messages and body.echo else None
    return OpenAICall(
        prompts=[prompt_token_ids],
        prompt_field="messages",
        params=params,
        sources=sources,
        echoed=last.content if last is not None and last.role == "assistant" else "",
        **common(body, values["logprobs"]),
    )
