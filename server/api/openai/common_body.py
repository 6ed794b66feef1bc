"""What the bodies of OpenAI's two routes share, and the call that both amount to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from detinfer.errors import RequestError
from detinfer.params import MAX_TOKENS_LIMIT
from detinfer.server.api.bodies.fields import (
    Choices,
    Integer,
    LogitBias,
    Logprobs,
    MinP,
    MinTokens,
    Name,
    Penalty,
    RepetitionPenalty,
    Stop,
    Temperature,
    TokenIds,
    TopK,
    TopP,
    WithReceipt,
    check_names,
    documented,
)
from detinfer.server.api.bodies.neutral import Off
from detinfer.server.api.bodies.sampling import SAMPLING_FIELDS
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.api.bodies.structured import (
    Choice,
    Grammar,
    GrammarOrEmpty,
    JsonSchema,
    JsonSchemaOrEmpty,
    Regex,
    RegexOrEmpty,
    ResponseFormat,
    StructuredOutputs,
    given_structure,
)
from detinfer.server.api.openai.neutral_fields import NeutralFields
from detinfer.server.api.openai.telling import Telling
from detinfer.server.call import Call, Truncation

_SAMPLED = "1 unless given: the answer is sampled, with a drawn seed that it reports"


class StreamOptions(StrictBody):
    """What a stream tells beside its text."""

    include_usage: bool | None = Field(None, description="a last chunk with the usage of all")
    continuous_usage_stats: bool | None = Field(None, description="usage so far on every chunk")
    include_obfuscation: Off = None


class OpenAIBody(NeutralFields):
    """What both routes share; null means left out."""

    model: str | None = Field(None, description="the served one, if given")
    temperature: Temperature | None = Field(None, description=f"0 is greedy; {_SAMPLED}")
    top_p: TopP | None = None
    n: Choices | None = Field(None, description="answers to each prompt, each with its own seed")
    stop: Stop | None = None
    seed: Annotated[Integer, documented(-1, (1 << 64) - 1)] | None = Field(
        None, description="of the first answer; the others follow from it; -1 draws one"
    )
    logit_bias: LogitBias | None = Field(None, description="token id to what its logit gains")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    response_format: ResponseFormat = Field(
        None, description="text, json_object or json_schema; strict is the only way"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    # Beyond OpenAI's
    deterministic: bool | None = Field(None, description="the server's default unless given")
    receipt: WithReceipt = None
    top_k: TopK | None = Field(None, description="0 and -1 keep all")
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    min_tokens: MinTokens | None = None
    ignore_eos: bool | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = Field(None, description="true unless given")
    add_special_tokens: bool | None = Field(
        None, description="whether the tokenizer adds its own to a text; false for messages"
    )
    truncate_prompt_tokens: Annotated[Integer, documented(-1, MAX_TOKENS_LIMIT)] | None = Field(
        None, description="most tokens of a prompt to keep; -1 keeps what leaves room to answer"
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="where a prompt is cut; left, its beginning, unless given"
    )
    prompt_logprobs: Logprobs | None = Field(None, description="of the prompt; not with stream")
    return_token_ids: bool | None = Field(None, description="prompt_token_ids and token_ids too")
    return_tokens_as_token_ids: bool | None = Field(
        None, description="name tokens token_id:5 in logprobs"
    )
    cache_salt: Name | None = Field(
        None, description="prefix-cache pages are shared by requests of one salt only"
    )
    request_id: Name | None = Field(None, description="part of the answer's id")
    # vLLM's, and SGLang's; at most one of them and response_format
    structured_outputs: StructuredOutputs = None
    guided_json: JsonSchema = None
    guided_regex: Regex = None
    guided_choice: Choice = None
    guided_grammar: Grammar = None
    json_schema: JsonSchemaOrEmpty = None
    regex: RegexOrEmpty = None
    ebnf: GrammarOrEmpty = None


@dataclass(frozen=True, kw_only=True)
class OpenAICall(Call):
    """A validated body of either route.

    Attributes:
        include_usage: a stream ends with the usage of all answers.
        continuous_usage: every chunk of a stream has its answer's usage so far.
        request_id: what the answer's id is made of; drawn if None.
        telling: what the choices tell beside their text.
        echo: the text begins with the prompt.
        echoed: what else it begins with: a chat's message that it continues.
    """

    include_usage: bool
    continuous_usage: bool
    request_id: str | None
    telling: Telling
    echo: bool = False
    echoed: str = ""


def sampling_values(
    body: OpenAIBody, default_deterministic: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the given sampling fields over OpenAI's defaults, and the names they came under."""
    given = {name: value for name in SAMPLING_FIELDS if (value := getattr(body, name)) is not None}
    if given.get("seed") == -1:
        del given["seed"]
    structure, names = given_structure(body, "")
    values = {"temperature": 1.0, "deterministic": default_deterministic, **given, **structure}
    return values, {name: name for name in given} | names


def common(body: OpenAIBody, logprobs: int | None, prompt_only: bool = False) -> dict[str, Any]:
    """Return the fields of the call that both routes make alike.

    Args:
        logprobs: how many likeliest tokens are told beside each.
        prompt_only: whether nothing of the answer itself is told.

    Raises:
        RequestError: a value out of range, or fields that do not go together.
    """
    options = {} if body.stream_options is None else body.stream_options.model_dump()
    for name, wanted in options.items():
        if wanted and not body.stream:
            raise RequestError(
                f"stream_options: got {name} without stream, expected stream = true",
                "stream_options",
            )
    if body.prompt_logprobs is not None and body.stream:
        raise RequestError(
            "prompt_logprobs: got it with stream, expected stream = false", "prompt_logprobs"
        )
    check_names(body, "cache_salt", "request_id")
    return {
        "stream": bool(body.stream),
        "include_usage": bool(options.get("include_usage")),
        "continuous_usage": bool(options.get("continuous_usage_stats")),
        "request_id": body.request_id,
        "cache_salt": body.cache_salt or "",
        "receipt": bool(body.receipt),
        "truncation": _truncation(body),
        "telling": Telling(
            token_ids=bool(body.return_token_ids),
            names_are_ids=bool(body.return_tokens_as_token_ids),
            special=body.skip_special_tokens is False,
            logprobs=logprobs,
            prompt_logprobs=body.prompt_logprobs,
            prompt_only=prompt_only,
        ),
    }


def _truncation(body: OpenAIBody) -> Truncation | None:
    most = body.truncate_prompt_tokens
    if most is None:
        return None
    if most != -1 and not 1 <= most <= MAX_TOKENS_LIMIT:
        raise RequestError(
            f"truncate_prompt_tokens: got {most}, expected -1 or an integer in "
            f"1..{MAX_TOKENS_LIMIT}",
            "truncate_prompt_tokens",
        )
    return Truncation(None if most == -1 else most, body.truncation_side != "right")
