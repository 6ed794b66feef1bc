"""Options that are not built: accepted where they would change nothing, refused elsewhere."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema


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


Absent = Annotated[Any, Neutral()]
Off = Annotated[Any, Neutral(False)]
Either = Annotated[Any, Neutral(True, False)]  # of something that there is nothing of
Empty = Annotated[Any, Neutral([])]
NoOptions = Annotated[Any, Neutral({})]
Zero = Annotated[Any, Neutral(0)]
Ignored = Annotated[str | None, Field(description="ignored")]
