"""``POST /generate``: the body's fields, their aliases, and the call they amount to."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, Field

from detinfer.server.api.bodies.fields import (
    Logprobs,
    MinTokens,
    Prompt,
    Prompts,
    Seed,
    Text,
    Texts,
    Tokens,
    WithReceipt,
)
from detinfer.server.api.bodies.neutral import Off
from detinfer.server.api.bodies.receipt import Receipt
from detinfer.server.api.bodies.sampling import Sampling, given_prompts, given_sampling
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.api.bodies.structured import Grammar, JsonSchema, Regex, ResponseFormat
from detinfer.server.call import Call, check_prompts, sampling_params

_PROMPT_FIELDS = ("prompt", "text", "inputs", "input_ids")


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
    min_tokens: MinTokens | None = None
    logprobs: Logprobs | None = None
    deterministic: bool | None = None
    receipt: WithReceipt = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    json_schema: JsonSchema = Field(None, description="what the answer is to be valid by")
    regex: Regex = Field(None, description="what the whole answer is to match")
    grammar: Grammar = Field(None, description="Lark or GBNF")
    response_format: ResponseFormat = Field(None, description="OpenAI's")
    use_beam_search: Off = None


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
    receipt: Receipt | None = None


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
    return Call(
        prompts=prompts,
        prompt_field=prompt_field,
        params=params,
        sources=sources,
        stream=bool(body.stream),
        receipt=bool(body.receipt),
        many=many or params.n > 1,
    )
