"""Types of the fields of bodies, with the bounds that the description states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from detinfer.errors import RequestError
from detinfer.params import (
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_TOKENS_LIMIT,
)
from detinfer.server.limits import MAX_PROMPTS


def documented(low: float, high: float) -> Any:
    """Field metadata: the range that the schema states and ``SamplingParams`` enforces."""
    return stated(minimum=low, maximum=high)


def stated(**keywords: float) -> Any:
    """Field metadata: JSON Schema's words for what is judged after parsing."""
    return Field(json_schema_extra=dict(keywords))


def needs(field: str) -> Callable[[dict[str, Any]], None]:
    """Describe a body whose ``field`` is null only until we say in our words that it is not.

    What a body needs of two fields is in words alone: generators of clients make nothing of the
    unions that would say it.
    """

    def state(schema: dict[str, Any]) -> None:
        of_field = schema["properties"][field]
        kinds = [kind for kind in of_field.pop("anyOf") if kind.get("type") != "null"]
        of_field |= {"anyOf": kinds} if len(kinds) > 1 else kinds[0]
        schema["required"] = [field]

    return state


# Wider than any field's range; only keeps absurdly long numbers out of messages and arithmetic.
Integer = Annotated[int, Field(ge=-(1 << 63), le=(1 << 64) - 1)]


def at_most(most: int) -> BeforeValidator:
    """Field metadata: a bound on the entries of an object or a list.

    Looked at first, so that a huge one costs no work an entry.
    """

    def check(value: object) -> object:
        if isinstance(value, dict | list) and len(value) > most:
            raise PydanticCustomError("too_long", "at most {most} entries", {"most": most})
        return value

    return BeforeValidator(check)


MAX_ENTRIES = 1024  # of a list of lists or objects: more are not even read

TokenIds = Annotated[list[Annotated[Integer, documented(0, (1 << 31) - 1)]], Field(fail_fast=True)]

Text = Annotated[str, stated(minLength=1)]
Texts = Annotated[list[Text], Field(fail_fast=True), stated(minItems=1, maxItems=MAX_PROMPTS)]
Prompt = Annotated[TokenIds, stated(minItems=1)]
Prompts = Annotated[
    list[Prompt],
    Field(fail_fast=True),
    stated(minItems=1, maxItems=MAX_PROMPTS),
    at_most(MAX_ENTRIES),
]

StopString = Annotated[str, stated(minLength=1, maxLength=MAX_STOP_LENGTH)]
StopStrings = Annotated[list[StopString], Field(fail_fast=True), stated(maxItems=MAX_STOP_STRINGS)]
Stop = StopString | StopStrings

# JSON's keys are strings; a pattern, since pydantic would read " +1_0.0" as 10.
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
LogitBias = Annotated[
    dict[TokenKey, Annotated[float, documented(-100.0, 100.0)]],
    at_most(MAX_LOGIT_BIAS),
    Field(json_schema_extra={"maxProperties": MAX_LOGIT_BIAS, "additionalProperties": False}),
]

Tokens = Annotated[Integer, documented(1, MAX_TOKENS_LIMIT)]
Seed = Annotated[Integer, documented(0, (1 << 64) - 1)]
Temperature = Annotated[float, documented(0.0, 100.0)]
Penalty = Annotated[float, documented(-2.0, 2.0)]
Choices = Annotated[Integer, documented(1, MAX_N)]
TopK = Annotated[Integer, documented(-1, 1 << 31)]
TopP = Annotated[float, documented(0.0, 1.0)]
MinP = Annotated[float, documented(0.0, 1.0)]
RepetitionPenalty = Annotated[float, documented(0.01, 100.0)]
MinTokens = Annotated[Integer, documented(0, MAX_TOKENS_LIMIT)]
Logprobs = Annotated[Integer, documented(0, MAX_LOGPROBS)]

WithReceipt = Annotated[
    bool | None, Field(description="each answer with its receipt, which POST /verify replays")
]

# What a client chooses: a salt, an id.
MAX_NAME = 128
Name = Annotated[str, stated(minLength=1, maxLength=MAX_NAME)]


def check_names(body: BaseModel, *fields: str) -> None:
    """Refuse a ``Name`` that is empty or too long.

    Raises:
        RequestError: naming the field.
    """
    for field in fields:
        name = getattr(body, field)
        if name is not None and not 0 < len(name) <= MAX_NAME:
            raise RequestError(f"{field}: expected 1 to {MAX_NAME} characters", field)
