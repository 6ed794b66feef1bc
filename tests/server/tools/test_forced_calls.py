"""Calls that a grammar forces: what the schema allows, and how they are read as they come."""

from __future__ import annotations

import json

import jsonschema
import pytest
from constrained import ascii_engine

from detinfer.params import SamplingParams
from detinfer.server.api.openai.tools.body import FunctionDefinition
from detinfer.server.api.openai.tools.forced import ForcedCalls, calls_schema

NODE = {
    "type": "object",
    "properties": {"next": {"$ref": "#/$defs/Node"}, "title": {"type": "boolean"}},
    "required": ["title"],
    "additionalProperties": False,
}
FUNCTIONS = [
    FunctionDefinition(name="no.parameters"),
    FunctionDefinition(
        name="with-refs",
        parameters={
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": "Arguments",
            "type": "object",
            "properties": {
                "node": {"$ref": "#/$defs/Node", "description": "x"},
                "kind": {"enum": ["a", "b"], "default": "a"},
            },
            "required": ["node", "kind"],
            "$defs": {"Node": NODE},
        },
    ),
    FunctionDefinition(name="any", parameters={"properties": {"n": {"type": "integer"}}}),
]
CALLS = [
    {"name": "no.parameters", "arguments": {}},
    {"name": "with-refs", "arguments": {"node": {"title": True}, "kind": "b"}},
    {
        "name": "with-refs",
        "arguments": {"node": {"next": {"next": {"title": False}, "title": True}, "title": True}}
        | {"kind": "a"},
    },
    {"name": "any", "arguments": {}},
    {"name": "any", "arguments": {"n": 5}},
]
NO_CALLS = [
    {"name": "nobody", "arguments": {}},
    {"name": "no.parameters", "arguments": {"a": 1}},
    {"name": "no.parameters"},
    {"name": "with-refs", "arguments": {"node": {"next": {}, "title": True}, "kind": "a"}},
    {"name": "with-refs", "arguments": {"node": {"title": True}, "kind": "c"}},
    {"name": "any", "arguments": {"n": "5"}},
    {"name": "any", "arguments": 5},
]
SCHEMA = calls_schema(FUNCTIONS, single=False)


def valid(value, schema=SCHEMA):
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def test_the_schema_allows_calls_and_nothing_else():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for call in CALLS:
        assert valid([call])
        assert not valid(call)
    assert valid(CALLS)
    for call in NO_CALLS:
        assert not valid([call])
        assert not valid([*CALLS, call])
    assert not valid([])


def test_one_call_where_asked():
    schema = calls_schema(FUNCTIONS, single=True)
    assert valid(CALLS[:1], schema)
    assert not valid(CALLS[:2], schema)


def arguments_of(**parameters):
    function = FunctionDefinition(name="f", parameters=parameters)
    [call] = calls_schema([function], single=True)["items"]["anyOf"]
    return call["properties"]["arguments"]


A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
B = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}


def test_objects_in_a_schema_are_closed_as_it_is_itself():
    """What unions of models come as, and lists of them."""
    either = {"anyOf": [{"$ref": "#/$defs/A"}, B]}
    lists = {"type": "array", "items": either}
    schema = arguments_of(properties={"one": either, "many": lists}, **{"$defs": {"A": A}})
    whole = {"properties": {"arguments": schema}}
    rooted = {"items": {"anyOf": [whole]}}  # where its references point
    for good in ({}, {"one": {"a": 1}}, {"one": {"b": 1}, "many": [{"a": 1}, {"b": 2}]}):
        assert valid(good, {**rooted, **schema})
    for more in ({"c": 1}, {"one": {"a": 1, "b": 1}}, {"many": [{"b": 1, "description": "b"}]}):
        assert not valid(more, {**rooted, **schema})


@pytest.mark.parametrize(
    "more",
    [
        {"additionalProperties": True},
        {"anyOf": [{"required": ["b"]}]},
        {"required": ["b"]},
        {"minProperties": 1},
    ],
)
def test_a_schema_that_says_more_is_not_closed(more):
    named = {"properties": {"a": {}}, **more}
    for schema in (arguments_of(**named), arguments_of(properties={"x": named})["properties"]["x"]):
        assert schema.get("additionalProperties", True) is True


@pytest.mark.parametrize(
    "both",
    [
        {"allOf": [A, B]},
        {"anyOf": [A], **B},
        {"oneOf": [A, B]},
        {"if": A, "then": B},
        {"not": A},
        {"properties": {"p": A}, "patternProperties": {"^p": B}},
    ],
)
def test_schemas_of_one_object_are_not_closed_each_alone(both):
    schema = arguments_of(properties={"x": both, "y": A})
    assert schema["properties"] == {"x": both, "y": A}
    assert schema["additionalProperties"] is False


def test_values_are_left_alone_and_descriptions_are_not_of_the_grammar():
    value = {"description": "kept", "$ref": "#/kept"}
    described = {"const": value, "enum": [value], "description": "gone", "title": "gone"}
    parameters = {"properties": {"title": described, "description": {"type": "string"}}}
    function = FunctionDefinition(name="f", parameters=parameters)
    [call] = calls_schema([function], single=True)["items"]["anyOf"]
    properties = call["properties"]["arguments"]["properties"]
    assert properties == {
        "title": {"const": value, "enum": [value]},
        "description": {"type": "string"},
    }


def pieces_of(*texts):
    reader = ForcedCalls()
    pieces = [piece for text in texts for piece in reader.push(text)]
    return [*pieces, *reader.finish()]


def joined(pieces):
    calls = []
    for kind, text in pieces:
        if kind == "call":
            calls.append([text, ""])
        else:
            assert kind == "arguments"
            calls[-1][1] += text
    return calls


@pytest.mark.parametrize("count", range(1, len(CALLS) + 1))
def test_calls_are_read_alike_wherever_they_are_cut(count):
    text = json.dumps(CALLS[-count:])
    expected = [[call["name"], json.dumps(call["arguments"])] for call in CALLS[-count:]]
    for at in range(len(text)):
        assert joined(pieces_of(text[:at], text[at:])) == expected
    pieces = pieces_of(*text)
    assert joined(pieces) == expected
    # As they come: a piece a character, not the whole once it is there.
    assert len(pieces) == count + sum(len(arguments) for _, arguments in expected)


def test_what_is_cut_off_is_told_as_far_as_it_goes():
    text = json.dumps(CALLS[1:3])
    head = text.index("}}, {") + 2
    start = text.index('{"node"')
    assert joined(pieces_of(text[: start + 20])) == [["with-refs", text[start : start + 20]]]
    assert len(joined(pieces_of(text[: head + 10]))) == 1
    assert pieces_of('[{"name": "wi') == [("content", '[{"name": "wi')]
    assert pieces_of() == []


@pytest.mark.parametrize("single", [True, False])
def test_the_engine_writes_what_the_reader_reads(single):
    """Random weights, forced: whatever comes is calls, and their arguments are by the schema."""
    engine = ascii_engine()
    schema = calls_schema(FUNCTIONS, single)
    for seed in range(6):
        params = SamplingParams(max_tokens=240, temperature=1.0, seed=seed, json_schema=schema)
        engine.add_request(str(seed), [5, 6, 7], params)
        text, reason = "", None
        while reason is None:
            for output in engine.step():
                text, reason = text + output.text, output.finish_reason
        calls = joined(pieces_of(*text))
        assert calls
        if reason == "stop":
            values = [{"name": name, "arguments": json.loads(text)} for name, text in calls]
            assert valid(values, schema)
            assert values == json.loads(text)
