"""What bodies of several dialects say alike: how to sample, and what to answer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from detinfer.errors import RequestError
from detinfer.server.api.bodies.fields import (
    Choices,
    LogitBias,
    MinP,
    Penalty,
    RepetitionPenalty,
    Stop,
    Temperature,
    TokenIds,
    TopK,
    TopP,
)
from detinfer.server.api.bodies.neutral import Either, Neutral
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.api.bodies.structured import given_structure

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


class Sampling(StrictBody):
    """What our flat form and the nested ones of other dialects share; null means left out."""

    temperature: Temperature | None = Field(None, description="0 is greedy")
    top_p: TopP | None = None
    top_k: TopK | None = Field(None, description="0 and -1 keep all")
    min_p: MinP | None = None
    stop: Stop | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    repetition_penalty: RepetitionPenalty | None = Field(
        None, description="over prompt and output; 1 is none"
    )
    presence_penalty: Penalty | None = Field(None, description="over the output")
    frequency_penalty: Penalty | None = Field(None, description="over the output")
    logit_bias: LogitBias | None = Field(None, description="token id to what its logit gains")
    n: Choices | None = Field(None, description="answers to each prompt; more than 1 give a list")
    best_of: Annotated[Any, Neutral(1)] = None
    skip_special_tokens: bool | None = Field(None, description="true unless given")
    spaces_between_special_tokens: Either = None


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

    Raises:
        RequestError: two fields constrain the answer.
    """
    if form is None:
        return {}, {}
    values, sources = given_structure(form, prefix)
    for field in type(form).model_fields:
        name = _OWN_NAMES.get(field, field)
        value = getattr(form, field)
        if value is not None and name in (*SAMPLING_FIELDS, "max_tokens", "logprobs"):
            values[name], sources[name] = value, prefix + field
    return values, sources
