"""A JSON schema as the compiler gets it: what it would not keep is spelled out, or refused by name.

- A date has 29 days in February in leap years alone, and no minute 61 seconds: RFC 3339 allows that
  where a leap second was, which no pattern can tell. Dates and times become patterns.
- Names that a schema leaves free may repeat, and then count once: of those that ``minProperties``
  asks for, one at most may be free.
- The states of all ``multipleOf`` together are their least common multiple; their time its square.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

LARGEST_MULTIPLE = 10_000

_DAYS = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)
_LEAP = r"(?:[1-9]\d(?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = rf"(?:[1-9]\d{{3}}-{_DAYS}|{_LEAP}-02-29)"
_HOUR = r"(?:[01]\d|2[0-3])"
_TIME = rf"{_HOUR}:[0-5]\d:[0-5]\d(?:\.\d+)?(?:[Zz]|[+-]{_HOUR}:[0-5]\d)"
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}[Tt]{_TIME}$"}

_VALUES = ("const", "enum", "default", "examples")  # no schemas, whatever they look like
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def read_schema(text: str) -> str:
    """Return a schema that means the same, and is kept.

    Raises:
        ValueError: naming the keyword, what was got and what was expected.
    """
    schema = json.loads(text)
    if isinstance(schema, bool):
        return "{}" if schema else '{"enum": []}'
    if not isinstance(schema, dict):
        raise ValueError(f"got {type(schema).__name__}, expected an object, true or false")
    parts = list(parts_of(schema))
    _check_multiples(parts)
    spelled = False
    for part in parts:
        _check_names(part)
        spelled |= _spell_out(part)
    return json.dumps(schema) if spelled else text


def parts_of(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a schema and every schema in it."""
    left: list[Any] = [schema]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            yield one
            for key, value in one.items():
                if key in _BY_NAME and isinstance(value, dict):
                    left += value.values()
                elif key not in _VALUES:
                    left.append(value)


def _check_multiples(parts: list[dict[str, Any]]) -> None:
    given = [part["multipleOf"] for part in parts if _is_number(part.get("multipleOf"))]
    multiples = [Decimal(repr(one)) for one in given if 0 < one < math.inf]
    finest = min([0, *(int(one.as_tuple().exponent) for one in multiples)])
    multiple = math.lcm(*(int(one.scaleb(-finest)) for one in multiples))
    if multiple > LARGEST_MULTIPLE:
        raise ValueError(
            f"multipleOf: got {multiple} (all of them together, without points), expected at most "
            f"{LARGEST_MULTIPLE}"
        )


def _check_names(part: dict[str, Any]) -> None:
    least, required = part.get("minProperties", 0), part.get("required", [])
    named = len({*map(str, required)}) if isinstance(required, list) else 0
    if _is_number(least) and least > named + 1:
        raise ValueError(
            f"minProperties: got {least} beside {named} required names, expected at most one more: "
            "names that are not listed may repeat"
        )


def _spell_out(part: dict[str, Any]) -> bool:
    """Put a pattern in the place of a date's or a time's format; whether there was one."""
    pattern = _FORMATS.get(str(part.get("format")))
    several = part.get("allOf", [])
    if pattern is None or not isinstance(several, list):
        return False
    del part["format"]
    part["allOf"] = [*several, {"pattern": pattern}]
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
