"""Request bodies: strict JSON in, plain values or one clear complaint out.

Types are judged here; ranges are judged by ``SamplingParams``, whose bounds the schema repeats.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic import ValidationError as PydanticValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema, from_json

from detinfer.errors import RequestError
from detinfer.params import MAX_LOGIT_BIAS, MAX_STOP_LENGTH, MAX_STOP_STRINGS
from detinfer.server.limits import MAX_PROMPTS

Body = TypeVar("Body", bound="StrictBody")

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of at most 64 bits",
    "greater_than_equal": "an integer of at most 64 bits",
    "less_than_equal": "an integer of at most 64 bits",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "string_pattern_mismatch": "a token id",
}


class StrictBody(BaseModel):
    """A request body: no coercion between types, no unknown fields, no NaN or infinity.

    Attributes:
        several_types: what is expected of fields of more than one type, whose branches would
            otherwise each complain in their own words.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    several_types: ClassVar[dict[str, str]] = {"stop": "a string or a list of strings"}

    @model_validator(mode="before")
    @classmethod
    def _known_fields_only(cls, value: object) -> object:
        # Before pydantic's own check, which makes a complaint a field.
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    close = difflib.get_close_matches(name[:64], cls.model_fields, n=1)
                    hint = f", did you mean {close[0]}?" if close else ""
                    raise PydanticCustomError(
                        "unknown_field", "{name}", {"name": name, "hint": hint}
                    )
        return value


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


class Neutral:
    """Field metadata of an option that is not built: only null and ``values`` are accepted.

    Attributes:
        values: those at which it would change nothing.
    """

    def __init__(self, *values: object) -> None:
        self.values = values

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        null = {"type": "null"}
        return {"anyOf": [*map(_exactly, self.values), null]} if self.values else null

    def _check(self, value: object) -> object:
        # Compared with their types: true is not 1 here.
        if value is None or any(
            value == known and isinstance(value, bool) == isinstance(known, bool)
            for known in self.values
        ):
            return value
        accepted = " or ".join([*map(json.dumps, self.values), "null"])
        raise PydanticCustomError(
            "unsupported_option", "not supported yet, expected {accepted}", {"accepted": accepted}
        )


def _exactly(value: object) -> dict[str, Any]:
    """Return one value's schema with its type: generators of clients need one."""
    if isinstance(value, list):
        items = _exactly(value[0]) if value else {}
        return {"type": "array", "items": items, "minItems": len(value), "maxItems": len(value)}
    if isinstance(value, dict):
        properties = {name: _exactly(one) for name, one in value.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    kind = "boolean" if isinstance(value, bool) else "number"
    return {"type": "string" if isinstance(value, str) else kind, "const": value}


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


# JSON's keys are strings; a pattern, since pydantic would read " +1_0.0" as 10.
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
LogitBias = Annotated[
    dict[TokenKey, Annotated[float, documented(-100.0, 100.0)]],
    at_most(MAX_LOGIT_BIAS),
    Field(json_schema_extra={"maxProperties": MAX_LOGIT_BIAS, "additionalProperties": False}),
]


def parse_body(model: type[Body], body: bytes) -> Body:
    """Read one JSON object.

    Raises:
        RequestError: not UTF-8, not JSON, or a field that is unknown or of the wrong type.
    """
    return validated(model, read_json(body))


def read_json(body: bytes) -> Any:
    """Return the JSON value that a body is.

    Raises:
        RequestError: not UTF-8, or not JSON.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"body: got invalid UTF-8 at byte {error.start}, expected UTF-8 JSON"
        ) from None
    try:
        return from_json(body)
    except ValueError as error:
        raise RequestError(f"body: not valid JSON: {error}", code="invalid_json") from None


def validated(model: type[Body], value: Any) -> Body:
    """Return a JSON value as a body.

    Raises:
        RequestError: no object, or a field that is unknown or of the wrong type.
    """
    try:
        return model.model_validate(value)
    except PydanticValidationError as error:
        raise _complaint(error.errors(include_url=False), model) from None


def _complaint(errors: list[ErrorDetails], model: type[StrictBody]) -> RequestError:
    """Return the first complaint; of a field with several types the branch that got furthest."""
    error = max(
        (one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]),
        key=lambda one: len(one["loc"]),
    )
    kind, location = error["type"], error["loc"]
    if kind == "unknown_field":
        field = _path((*location, error["ctx"]["name"]))
        return RequestError(f"{field}: unknown field{error['ctx']['hint']}", field, "unknown_field")
    if not location:
        return RequestError(f"body: got {shown(error['input'])}, expected a JSON object")
    expected = _EXPECTED.get(kind, "")
    for depth, part in enumerate(location):
        if part in model.several_types:
            location, expected = location[: depth + 1], model.several_types[str(part)]
            break
    field = _path(location)
    if kind == "missing":
        return RequestError(f"{field}: missing", field)
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
    got = f"{field}: got {shown(error['input'])}"
    return RequestError(f"{got}, {f'expected {expected}' if expected else error['msg']}", field)


def _path(location: tuple[int | str, ...]) -> str:
    """``sampling_params.stop`` for a location, short whatever the client called its fields."""
    return ".".join(str(part)[:64] for part in location if part != "[key]")


def shown(value: object) -> str:
    """``value`` as JSON, cut to a length that fits a one-line message."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = value if isinstance(value, str) else None
    if text is not None:
        return json.dumps(text if len(text) <= 40 else text[:40] + "…", ensure_ascii=False)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return json.dumps(value)
