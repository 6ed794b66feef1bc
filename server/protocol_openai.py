"""What OpenAI's two routes share, and the body of ``POST /v1/completions``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from detinfer.errors import RequestError
from detinfer.params import MAX_LOGPROBS, MAX_TOKENS_LIMIT
from detinfer.server.call import Call, check_prompts, sampling_params
from detinfer.server.protocol import (
    Integer,
    LogitBias,
    Neutral,
    Prompt,
    Prompts,
    StopString,
    StopStrings,
    StrictBody,
    Text,
    Texts,
    TokenIds,
    documented,
    exactly_one,
)
from detinfer.server.protocol_native import (
    SAMPLING_FIELDS,
    Choices,
    Penalty,
    Seed,
    Temperature,
    TopK,
    TopP,
)

_SAMPLED = "1 unless given: the answer is sampled, with a drawn seed that it reports"

Logprobs = Annotated[Integer, documented(0, MAX_LOGPROBS)]


class StreamOptions(StrictBody):
    """What a stream tells beside its text."""

    include_usage: bool | None = Field(None, description="a last chunk with the usage of all")
    continuous_usage_stats: bool | None = Field(None, description="usage so far on every chunk")
    include_obfuscation: Annotated[Any, Neutral(False)] = None


class OpenAIBody(StrictBody):
    """What both routes share; null means left out."""

    model: str | None = Field(None, description="the served one, if given")
    temperature: Temperature | None = Field(None, description=f"0 is greedy; {_SAMPLED}")
    top_p: TopP | None = None
    n: Choices | None = Field(None, description="answers to each prompt, each with its own seed")
    stop: StopString | StopStrings | None = None
    seed: Seed | None = Field(None, description="of the first answer; the others follow from it")
    logit_bias: LogitBias | None = Field(None, description="token id to what its logit gains")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    user: str | None = Field(None, description="ignored")
    metadata: dict[str, Any] | None = Field(None, description="ignored")
    store: Annotated[Any, Neutral(False)] = None
    # Beyond OpenAI's
    deterministic: bool | None = Field(None, description="the server's default unless given")
    top_k: TopK | None = Field(None, description="0 and -1 keep all")
    min_p: Annotated[float, documented(0.0, 1.0)] | None = None
    repetition_penalty: Annotated[float, documented(0.01, 100.0)] | None = None
    min_tokens: Annotated[Integer, documented(0, MAX_TOKENS_LIMIT)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: TokenIds | None = None
    response_format: Annotated[Any, Neutral({"type": "text"})] = None
    skip_special_tokens: Annotated[Any, Neutral(True)] = None
    spaces_between_special_tokens: Annotated[Any, Neutral(True)] = None
    include_stop_str_in_output: Annotated[Any, Neutral(False)] = None
    return_tokens_as_token_ids: Annotated[Any, Neutral(False)] = None
    return_token_ids: Annotated[Any, Neutral(False)] = None
    use_beam_search: Annotated[Any, Neutral(False)] = None
    length_penalty: Annotated[Any, Neutral(1.0)] = None
    truncate_prompt_tokens: Annotated[Any, Neutral()] = None
    prompt_logprobs: Annotated[Any, Neutral()] = None
    priority: Annotated[Any, Neutral(0)] = None


class CompletionRequest(OpenAIBody):
    """The body of ``POST /v1/completions``."""

    several_types: ClassVar[dict[str, str]] = {
        **StrictBody.several_types,
        "prompt": "a string, a list of strings, of token ids, or of lists of token ids",
    }

    model_config = ConfigDict(json_schema_extra=exactly_one("prompt"))

    prompt: Text | Texts | Prompt | Prompts | None = None
    max_tokens: Annotated[Integer, documented(0, MAX_TOKENS_LIMIT)] | None = Field(
        None, description="16 unless given; 0 only with echo"
    )
    echo: bool | None = Field(None, description="begin the text, and the logprobs, with the prompt")
    logprobs: Logprobs | None = None
    best_of: Integer | None = Field(None, description="n, if given")
    suffix: Annotated[Any, Neutral("")] = None


@dataclass(frozen=True, kw_only=True)
class OpenAICall(Call):
    """A validated body of either route.

    Attributes:
        include_usage: a stream ends with the usage of all answers.
        continuous_usage: every chunk of a stream has its answer's usage so far.
        echo: the text begins with the prompt.
        prompt_only: nothing is wanted but the prompt (``max_tokens`` of 0): one token is
            generated, and not given.
    """

    include_usage: bool
    continuous_usage: bool
    echo: bool = False
    prompt_only: bool = False


def completion_call(body: CompletionRequest, default_deterministic: bool) -> OpenAICall:
    """Resolve defaults.

    Raises:
        RequestError: no prompt, a value out of range, or fields that do not go together.
    """
    if body.prompt is None:
        expected = CompletionRequest.several_types["prompt"]
        raise RequestError(f"prompt: missing, expected {expected}", "prompt")
    values, sources = sampling_values(body, default_deterministic)
    echo = bool(body.echo)
    prompt_only = body.max_tokens == 0
    if prompt_only and not echo:
        raise RequestError("max_tokens: got 0 without echo, expected at least 1", "max_tokens")
    if body.max_tokens is not None:
        sources["max_tokens"] = "max_tokens"
    values["max_tokens"] = 16 if body.max_tokens is None else body.max_tokens or 1
    values["logprobs"] = body.logprobs
    values["prompt_logprobs"] = body.logprobs if echo else None
    params = sampling_params(values, sources)
    if body.best_of not in (None, params.n):
        raise RequestError(
            f"best_of: got {body.best_of}, not supported yet, expected n = {params.n} or null",
            "best_of",
        )
    prompts: Any = body.prompt
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    check_prompts(prompts, "prompt", params.n, sources)
    return OpenAICall(
        prompts=prompts,
        prompt_field="prompt",
        params=params,
        sources=sources,
        echo=echo,
        prompt_only=prompt_only,
        **streaming(body),
    )


def sampling_values(
    body: OpenAIBody, default_deterministic: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """The given sampling fields over OpenAI's defaults, and the names they came under."""
    given = {name: value for name in SAMPLING_FIELDS if (value := getattr(body, name)) is not None}
    values = {"temperature": 1.0, "deterministic": default_deterministic, **given}
    return values, {name: name for name in given}


def streaming(body: OpenAIBody) -> dict[str, bool]:
    """How the answer is to be sent, as fields of the call.

    Raises:
        RequestError: options of a stream without one.
    """
    options = body.stream_options
    if options is not None and not body.stream:
        raise RequestError(
            "stream_options: got an object without stream, expected stream = true", "stream_options"
        )
    return {
        "stream": bool(body.stream),
        "include_usage": options is not None and bool(options.include_usage),
        "continuous_usage": options is not None and bool(options.continuous_usage_stats),
    }
