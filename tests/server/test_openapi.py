"""The description is made of what generators of typed clients can read."""

from __future__ import annotations

import pytest

from detinfer.config import ServerConfig
from detinfer.server.app import create_app

COMBINED = ("anyOf", "oneOf", "allOf")
SCHEMAS = ("schema", "itemSchema")
TYPED = {"type", "$ref", *COMBINED}


def schemas(part, place="", is_schema=False):
    """Every schema of a description, with its place."""
    if isinstance(part, list):
        for index, one in enumerate(part):
            yield from schemas(one, f"{place}/{index}", is_schema)
    if not isinstance(part, dict):
        return
    if is_schema:
        yield place, part
    for name, one in part.items():
        below = f"{place}/{name}"
        if name in ("properties", "schemas", "patternProperties"):
            for key, schema in one.items():
                yield from schemas(schema, f"{below}/{key}", True)
        else:
            nested = name in (*COMBINED, *SCHEMAS, "items", "additionalProperties", "propertyNames")
            yield from schemas(one, below, nested)


def kind(value):
    return "number" if type(value) in (int, float) else type(value).__name__


def faults(schema):
    """What generators refuse, or make nothing of, in one schema."""
    if len({kind(value) for value in schema.get("enum", [])}) > 1:
        yield "an enum of several types"
    if "default" in schema and schema["default"] is None:
        yield "null is what is left out"
    if {"const", "enum"} & {*schema} and "type" not in schema:
        yield "a value without its type"
    if isinstance(schema.get("type"), list):
        yield "several types in one"
    if schema.get("type") == "array" and not {"items", "prefixItems"} & {*schema}:
        yield "an array of who knows what"
    for word in COMBINED:
        if word in schema and "properties" in schema:
            yield f"{word} beside properties"
        if any(TYPED.isdisjoint(branch) for branch in schema.get(word, [])):
            yield f"{word} of what is no type"
    if "not" in schema:
        yield "a not"


@pytest.fixture(scope="module")
def description():
    return create_app(None, ServerConfig()).openapi()


def test_no_schema_has_what_generators_refuse(description):
    found = list(schemas(description))
    assert len(found) > 500
    wrong = [(place, fault) for place, schema in found for fault in faults(schema)]
    assert wrong == []


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"enum": [False, None]}, "an enum of several types"),
        ({"type": "string", "default": None}, "null is what is left out"),
        ({"const": "text"}, "a value without its type"),
        ({"type": ["string", "null"]}, "several types in one"),
        ({"type": "array"}, "an array of who knows what"),
        ({"type": "object", "properties": {}, "oneOf": [{"$ref": "#"}]}, "oneOf beside properties"),
        ({"oneOf": [{"required": ["a"]}, {"type": "null"}]}, "oneOf of what is no type"),
        ({"properties": {"a": {"not": {"type": "null"}}}}, "a not"),
    ],
)
@pytest.mark.parametrize("nest", [None, "anyOf", "items", "properties", "additionalProperties"])
def test_each_fault_is_found_wherever_it_is(schema, fault, nest):
    """The negative control."""
    inner = {"anyOf": [schema], "properties": {"b": schema}}.get(nest, schema)
    body = {"schema": inner if nest is None else {nest: inner}}
    document = {"paths": {"/x": {"post": {"requestBody": {"content": {"json": body}}}}}}
    assert fault in [one for _, found in schemas(document) for one in faults(found)]


def test_operations_have_names_of_their_own(description):
    names = [
        operation["operationId"]
        for methods in description["paths"].values()
        for operation in methods.values()
    ]
    assert len(names) == len(set(names)) >= 20
