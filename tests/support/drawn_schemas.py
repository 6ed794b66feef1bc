"""JSON schemas, drawn by hypothesis from one seed.

hypothesis-jsonschema 0.23.1, which could draw them from a schema of schemas, calls inner parts of
hypothesis that 6.170 has no more.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Schemas = st.SearchStrategy[Any]

NAMES = st.sampled_from(["a", "b", "c", "key", "größe"])
PATTERNS = st.sampled_from(
    ["^[a-f]{1,4}$", "^(ab|c)+$", "[0-9]", "x$", "^$", r"^\d{2}-\w", "^.{2,5}$", "(?=a)b", "^a|b$"]
)
FORMATS = st.sampled_from(
    ["date", "date-time", "time", "email", "ipv4", "ipv6", "uuid", "uri", "regex", "nothing"]
)
TYPES = st.sampled_from(["null", "boolean", "number", "integer", "string", "array", "object"])
SMALL = st.integers(0, 6)
NUMBERS = st.one_of(st.integers(-99, 999), st.sampled_from([0.5, -1.25, 1e3, 2.5e-3, 1e15]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=3,
)


def drawn_schemas(count: int, drawn_from: int) -> list[Any]:
    """Different schemas, the same for the same seed under one release of hypothesis."""
    found: dict[str, Any] = {}

    @seed(drawn_from)
    @settings(
        max_examples=2 * count,  # it likes to come back to what it drew
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_schemas())
    def collect(schema: Any) -> None:
        found[json.dumps(schema)] = schema

    collect()
    assert len(found) >= count
    return list(found.values())[:count]


def _schemas() -> Schemas:
    inner = st.recursive(_leaf(), _nested, max_leaves=6)
    return st.one_of(inner, inner, st.tuples(inner, inner).map(_referring))


def _leaf() -> Schemas:
    return st.one_of(
        st.booleans(),
        _with(type=TYPES),
        _with({"type": st.just("string")}, minLength=SMALL, maxLength=SMALL, pattern=PATTERNS),
        _with({"type": st.just("string")}, format=FORMATS, minLength=SMALL),
        _with({"type": st.just("integer")}, minimum=NUMBERS, maximum=NUMBERS,
              multipleOf=st.sampled_from([2, 3, 5])),
        _with({"type": st.just("number")}, minimum=NUMBERS, exclusiveMaximum=NUMBERS,
              multipleOf=st.sampled_from([0.5, 0.01, 10])),
        _with({"enum": st.lists(VALUES, min_size=1, max_size=3)}, type=TYPES),
        _with({"const": VALUES}),
    )  # fmt: skip


def _nested(inner: Schemas) -> Schemas:
    several = st.lists(inner, min_size=1, max_size=3)
    properties = st.dictionaries(NAMES, inner, max_size=4)
    required = st.lists(NAMES, unique=True, max_size=3)
    array, record = {"type": st.just("array")}, {"type": st.just("object")}
    honoured = st.one_of(
        _with(array, items=inner, minItems=SMALL, maxItems=SMALL),
        _with(array, prefixItems=several, items=inner, minItems=SMALL),
        _with(
            record,
            properties=properties,
            required=required,
            additionalProperties=st.just(False) | inner,
        ),
        _with(
            record,
            properties=properties,
            required=required,
            minProperties=SMALL,
            maxProperties=SMALL,
        ),
        _with(
            record,
            additionalProperties=inner,
            patternProperties=st.dictionaries(st.sampled_from(["^[a-c]", "e"]), inner),
        ),
        _with({"anyOf": several}, properties=properties, type=TYPES),
        _with({"allOf": several}, required=required),
    )
    not_always = st.one_of(
        _with(array, items=inner, contains=inner, uniqueItems=st.booleans()),
        _with(record, propertyNames=inner, additionalProperties=inner),
        _with(record, properties=properties, dependentRequired=st.just({"a": ["b"]})),
        _with({"oneOf": several}),
        _with({"not": inner}),
        _with({"if": inner}, then=inner, **{"else": inner}),
    )
    return st.one_of(honoured, honoured, honoured, honoured, not_always)


def _referring(parts: tuple[Any, Any]) -> Any:
    one, other = parts
    here = {"$ref": "#/$defs/one"}
    properties = {"a": {"type": "array", "items": here, "maxItems": 2}, "b": other, "c": here}
    return {"$defs": {"one": one}, "type": "object", "properties": properties, "required": ["a"]}


def _with(given: dict[str, Schemas] | None = None, **optional: Schemas) -> Schemas:
    """Objects that have what is given, and some of what is optional."""
    return st.fixed_dictionaries(given or {}, optional=optional)
