"""Request bodies: strict JSON in, plain values or one clear complaint out.

Types are judged here; ranges are judged by ``SamplingParams``, whose bounds the schema repeats.
"""

from __future__ import annotations

import difflib
import json
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic import ValidationError as PydanticValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from detinfer.errors import RequestError

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
