"""``POST /generate``: the body's fields, their aliases, and the call they amount to."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from detinfer.errors import RequestError
from detinfer.params import MAX_LOGPROBS, MAX_N, MAX_TOKENS_LIMIT
from detinfer.server.api.bodies.strict import (
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
)
from detinfer.server.call import Call, check_prompts, sampling_params

# Under the same names in every dialect.
SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "deterministic",
    "skip_special_tokens",
    "include_stop_str_in_output",
)
_OWN_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "no_stop_trim": "include_stop_str_in_output",
}
Given = dict[str, Any]
Sources = dict[str, str]

_PROMPT_FIELDS = ("prompt", "text", "inputs", "input_ids")

Tokens = Annotated[Integer, documented(1, MAX_TOKENS_LIMIT)]
Seed = Annotated[Integer, documented(0, (1 << 64) - 1)]
Temperature = Annotated[float, documented(0.0, 100.0)]
Penalty = Annotated[float, documented(-2.0, 2.0)]
Choices = Annotated[Integer, documented(1, MAX_N)]
TopK = Annotated[Integer, documented(-1, 1 << 31)]
TopP = Annotated[float, documented(0.0, 1.0)]


class Sampling(StrictBody):
    """What our flat form and the nested ones of other dialects share; null means left out."""

    temperature: Temperature | None = Field(None, description="0 is greedy")
    top_p: TopP | None = None
    top_k: TopK | None = Field(None, description="0 and -1 keep all")
    min_p: Annotated[float, documented(0.0, 1.0)] | None = None
    stop: StopString | StopStrings | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    repetition_penalty: Annotated[float, documented(0.01, 100.0)] | None = Field(
        None, description="over prompt and output; 1 is none"
    )
    presence_penalty: Penalty | None = Field(None, description="over the output")
    frequency_penalty: Penalty | None = Field(None, description="over the output")
    logit_bias: LogitBias | None = Field(None, description="token id to what its logit gains")
    n: Choices | None = Field(None, description="answers to each prompt; more than 1 give a list")
    best_of: Annotated[Any, Neutral(1)] = None
    skip_special_tokens: bool | None = Field(None, description="true unless given")
    spaces_between_special_tokens: Annotated[Any, Neutral(True, False)] = None


class GenerateRequest(Sampling):
    """The body of ``POST /generate``; exactly one of prompt (text, inputs) and input_ids."""

    several_types: ClassVar[dict[str, str]] = {
        **StrictBody.several_types,
        "prompt": "a string or a list of strings",
        "text": "a string or a list of strings",
        "inputs": "a string or a list of strings",
        "input_ids": "a list of token ids or a list of such lists",
    }

    prompt: Text | Texts | None = None
    text: Text | Texts | None = Field(None, description="alias of prompt")
    inputs: Text | Texts | None = Field(None, description="alias of prompt")
    input_ids: Prompt | Prompts | None = None
    max_tokens: Tokens | None = Field(None, description="128 unless given")
    seed: Seed | None = None
    min_tokens: Annotated[Integer, documented(0, MAX_TOKENS_LIMIT)] | None = None
    logprobs: Annotated[Integer, documented(0, MAX_LOGPROBS)] | None = None
    deterministic: bool | None = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    response_format: Annotated[Any, Neutral({"type": "text"})] = None
    use_beam_search: Annotated[Any, Neutral(False)] = None


class Usage(BaseModel):
    """Token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Logprob(BaseModel):
    """The log-probability of one output token."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class GenerateResponse(BaseModel):
    """One answer; a list of prompts gives a list of these."""

    id: str
    text: str
    output_ids: list[int]
    finish_reason: str
    deterministic: bool
    seed: int | None
    digest: str
    system_fingerprint: str
    usage: Usage
    logprobs: list[Logprob] | None


def generate_call(body: GenerateRequest, default_deterministic: bool) -> Call:
    """Resolve aliases and defaults.

    Raises:
        RequestError: no prompt, two prompts, or a value out of range.
    """
    prompt_field, prompts, many = given_prompts(body, _PROMPT_FIELDS)
    values, sources = given_sampling(body)
    values.setdefault("deterministic", default_deterministic)
    params = sampling_params(values, sources)
    check_prompts(prompts, prompt_field, params.n, sources)
    sources["prompt"] = prompt_field
    return Call(
        prompts=prompts,
        prompt_field=prompt_field,
        params=params,
        sources=sources,
        stream=bool(body.stream),
        many=many or params.n > 1,
    )


def given_prompts(body: StrictBody, fields: tuple[str, ...]) -> tuple[str, list[Any], bool]:
    """Return the one of ``fields`` that was given, its prompts, and whether they came as a list.

    Raises:
        RequestError: none was given, or two.
    """
    given = [name for name in fields if getattr(body, name) is not None]
    if not given:
        names = f"{fields[0]} or {fields[-1]}"
        raise RequestError(f"{fields[0]}: missing, expected {names}", fields[0])
    if len(given) > 1:
        raise RequestError(
            f"{given[1]}: got it beside {given[0]}, expected one of {', '.join(fields)}",
            given[1],
        )
    name = given[0]
    value: Any = getattr(body, name)
    many = isinstance(value, list) and (
        name != "input_ids" or isinstance(next(iter(value), 0), list)
    )
    return name, value if many else [value], many


def given_sampling(form: BaseModel | None, prefix: str = "") -> tuple[Given, Sources]:
    """Return the given sampling fields of a form under our names, and the names the client used.

    Args:
        form: the body, or an object in it, or none.
        prefix: of the form's fields, as the client knows them.
    """
    values: Given = {}
    sources: Sources = {}
    for field in type(form).model_fields if form is not None else ():
        name = _OWN_NAMES.get(field, field)
        value = getattr(form, field)
        if value is not None and name in (*SAMPLING_FIELDS, "max_tokens", "logprobs"):
            values[name], sources[name] = value, prefix + field
    return values, sources
