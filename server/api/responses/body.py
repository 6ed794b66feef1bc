"""The body of ``POST /v1/responses``, and the call it amounts to."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from detinfer.chat_template import Rendering
from detinfer.errors import RequestError
from detinfer.server.api.bodies.fields import (
    Logprobs,
    MinTokens,
    Name,
    Seed,
    Tokens,
    WithReceipt,
    at_most,
    check_names,
    needs,
)
from detinfer.server.api.bodies.neutral import Absent, Empty, Neutral, NoOptions, Off
from detinfer.server.api.bodies.sampling import Sampling, given_sampling
from detinfer.server.api.bodies.strict import StrictBody, validated
from detinfer.server.api.bodies.structured import StructuredOutputs, text_format
from detinfer.server.api.openai.chat_body import ChatMessage, ReasoningEffort, TemplateOptions
from detinfer.server.api.openai.neutral_fields import NeutralFields
from detinfer.server.api.openai.tools.reading import Reading
from detinfer.server.api.responses.items import Item, messages_of
from detinfer.server.api.responses.tools import ResponsesToolChoice, ResponsesTools
from detinfer.server.call import Call, sampling_params

LOGPROBS = "message.output_text.logprobs"
# Of what no answer has here, there is nothing to include.
_INCLUDES = (
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)


def _format(value: Any) -> Any:
    text_format(value)
    return value


def _include(value: Any) -> Any:
    known = isinstance(value, list) and all(one in _INCLUDES for one in value)
    if value is not None and not known:
        expected = ", ".join(_INCLUDES)
        raise PydanticCustomError("include", "expected a list of {names}", {"names": expected})
    return value


def _object(*required: str) -> dict[str, Any]:
    properties = {name: {"type": "string"} for name in required}
    return {"type": "object", "properties": properties, "additionalProperties": True}


def _nullable(schema: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [schema, {"type": "null"}]})


_ITEMS = {"type": "array", "items": _object("type"), "minItems": 1}
Input = Annotated[Any, PlainValidator(lambda value: None if value is None else messages_of(value))]


class TextOptions(StrictBody):
    """What the answer's text is to be like."""

    format: Annotated[Any, PlainValidator(_format), _nullable(_object("type"))] = Field(
        None, description="text, json_object or json_schema; strict is the only way"
    )
    verbosity: Annotated[Any, Neutral("medium")] = None


class ReasoningOptions(StrictBody):
    """Variables of the template."""

    effort: ReasoningEffort | None = Field(
        None, description="a variable of the template; so is enable_thinking, unless it is none"
    )
    summary: Annotated[Any, Neutral("auto", "concise", "detailed")] = None
    generate_summary: Annotated[Any, Neutral("auto", "concise", "detailed")] = None


class ResponsesStreamOptions(StrictBody):
    """What a stream tells beside its text."""

    include_obfuscation: Off = None


class ResponsesRequest(Sampling, NeutralFields):
    """The body of ``POST /v1/responses``; null means left out."""

    several_types: ClassVar[dict[str, str]] = {
        **StrictBody.several_types,
        "chat_template_kwargs": "an object of at most 64 strings, numbers and booleans",
    }

    model_config = ConfigDict(json_schema_extra=needs("input"))

    model: str | None = Field(None, description="the served one, if given")
    input: Annotated[
        Input, WithJsonSchema({"anyOf": [{"type": "string"}, _ITEMS, {"type": "null"}]})
    ] = Field(None, description="text, or items: messages, calls, what they gave")
    instructions: str | None = Field(None, description="a system message before the input")
    max_output_tokens: Tokens | None = Field(
        None, description="what the model's length leaves unless given"
    )
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: Annotated[
        Any,
        PlainValidator(_include),
        _nullable({"type": "array", "items": {"type": "string", "enum": list(_INCLUDES)}}),
    ] = None
    top_logprobs: Logprobs | None = Field(None, description=f"only with include = [{LOGPROBS!r}]")
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    store: bool | None = Field(None, description="nothing is stored, whatever is asked")
    metadata: Annotated[dict[str, Any], at_most(64)] | None = Field(
        None, description="handed back as it is"
    )
    tools: ResponsesTools | None = Field(None, description="functions that the model may call")
    tool_choice: ResponsesToolChoice = Field(
        None, description="auto unless given; a forced call is one that its schema allows"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most")
    n: Annotated[Any, Neutral(1)] = None
    # Not built
    max_tool_calls: Absent = None
    access_programs: Absent = None
    image: Absent = None
    previous_response_id: Absent = None
    conversation: Absent = None
    background: Off = None
    background_options: NoOptions = None
    prompt: Absent = None
    prompt_cache_options: NoOptions = None
    context_management: Absent = None
    moderation: Absent = None
    truncation: Annotated[Any, Neutral("disabled")] = None
    prompt_cache_retention: Annotated[Any, Neutral("in_memory", "24h")] = None
    media_io_kwargs: NoOptions = None
    enable_response_messages: Off = None
    previous_input_messages: Empty = None
    # Beyond OpenAI's
    deterministic: bool | None = Field(None, description="the server's default unless given")
    receipt: WithReceipt = None
    seed: Seed | None = Field(None, description="drawn, and reported, unless given")
    min_tokens: MinTokens | None = None
    include_stop_str_in_output: bool | None = None
    include_reasoning: bool | None = Field(None, description="false leaves reasoning out")
    chat_template_kwargs: TemplateOptions | None = Field(
        None, description="variables of the model's chat template"
    )
    structured_outputs: StructuredOutputs = None
    cache_salt: Name | None = Field(
        None, description="prefix-cache pages are shared by requests of one salt only"
    )
    request_id: Name | None = Field(None, description="part of the response's id")


def messages(body: ResponsesRequest) -> list[ChatMessage]:
    """Return the instructions and the input as a chat.

    Raises:
        RequestError: there is no input.
    """
    if body.input is None:
        raise RequestError("input: missing, expected a string or a list of items", "input")
    first: list[Item] = []
    if body.instructions is not None:
        first = [{"role": "system", "content": body.instructions}]
    try:
        return [validated(ChatMessage, message) for message in [*first, *body.input]]
    except RequestError as error:
        raise RequestError(f"input: {error}", "input") from None


def rendering(body: ResponsesRequest) -> Rendering:
    """Return how the messages become a prompt."""
    effort = body.reasoning and body.reasoning.effort
    options: dict[str, Any] = {}
    if effort:
        options = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    return Rendering(
        options | (body.chat_template_kwargs or {}),
        tools=[tool.as_chat().for_template() for tool in body.tools or ()],
    )


def responses_call(
    body: ResponsesRequest,
    prompt_token_ids: list[int],
    default_deterministic: bool,
    reading: Reading,
    calls: str | None,
) -> Call:
    """Resolve defaults, around the messages as the model's template spells them.

    Args:
        body: what was asked for.
        prompt_token_ids: its messages.
        default_deterministic: what holds unless it says so.
        reading: of the answer.
        calls: the schema that forces calls, if they are to be forced.

    Raises:
        RequestError: a value out of range, or fields that do not go together.
    """
    values, sources = given_sampling(body)
    values = {"temperature": 1.0, "deterministic": default_deterministic, **values}
    structure = text_format(body.text.format) if body.text is not None else None
    if structure is not None:
        if body.structured_outputs is not None:
            raise RequestError(
                "text.format: got it beside structured_outputs, expected one of them", "text.format"
            )
        values[structure.field], sources[structure.field] = structure.value, "text.format"
    reading.prepare(values, sources, calls)
    values["max_tokens"] = body.max_output_tokens
    if body.max_output_tokens is not None:
        sources["max_tokens"] = "max_output_tokens"
    told = LOGPROBS in (body.include or ())
    if body.top_logprobs and not told:
        raise RequestError(
            f"top_logprobs: got {body.top_logprobs}, expected it with include = [{LOGPROBS!r}]",
            "top_logprobs",
        )
    values["logprobs"] = (body.top_logprobs or 0) if told else None
    sources["logprobs"] = "top_logprobs"
    check_names(body, "cache_salt", "request_id")
    return Call(
        prompts=[prompt_token_ids],
        prompt_field="input",
        params=sampling_params(values, sources),
        sources=sources,
        stream=bool(body.stream),
        cache_salt=body.cache_salt or "",
        receipt=bool(body.receipt),
    )
