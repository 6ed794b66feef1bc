"""Structured output over HTTP: every dialect's words come to one constraint; refusals name it."""

import json

import pytest
from constrained import PERSON, AsciiRunner
from fake_engine import FakeEngine
from tiny_engine import TinyEngine

from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.params import constraint_of

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT = json.dumps(PERSON)
NAMED = {"name": "person", "schema": PERSON}
PERSON_ASKED = [
    ("/generate", {"prompt": "a", "json_schema": PERSON}),
    ("/generate", {"prompt": "a", "json_schema": TEXT}),
    ("/generate", {"text": "a", "sampling_params": {"json_schema": TEXT}}),
    ("/generate", {"inputs": "a", "parameters": {"grammar": {"type": "json", "value": PERSON}}}),
    ("/", {"inputs": "a", "parameters": {"grammar": {"type": "json_schema", "value": NAMED}}}),
    *[
        (path, prompt | more)
        for path, prompt in ((CHAT, HI), ("/v1/completions", {"prompt": "a"}))
        for more in (
            {"response_format": {"type": "json_schema", "json_schema": NAMED}},
            {"response_format": {"type": "json_schema", "json_schema": NAMED | {"strict": False}}},
            {"structured_outputs": {"json": PERSON, "regex": None, "disable_fallback": True}},
            {"guided_json": TEXT},
            {"json_schema": TEXT, "regex": "", "response_format": {"type": "text"}},
        )
    ],
]
OTHERS = [
    ({"response_format": {"type": "json_object"}}, ("json_schema", '{"type": "object"}')),
    ({"structured_outputs": {"json_object": True}}, ("json_schema", '{"type": "object"}')),
    ({"guided_regex": "a+"}, ("regex", "a+")),
    ({"structured_outputs": {"regex": "a+"}}, ("regex", "a+")),
    ({"guided_choice": ["a", 'b"\n']}, ("grammar", 'start: "a" | "b\\"\\n"')),
    ({"structured_outputs": {"choice": ["ä"]}}, ("grammar", 'start: "ä"')),
    ({"guided_grammar": 'root ::= "a"'}, ("grammar", 'root ::= "a"')),
    ({"ebnf": 'root ::= "a"'}, ("grammar", 'root ::= "a"')),
    ({"response_format": {"type": "text"}, "guided_json": None}, None),
]


@pytest.mark.parametrize(("path", "body"), PERSON_ASKED)
def test_a_schema_in_everybodys_words(make_client, path, body):
    engine = FakeEngine()
    assert make_client(engine).post(path, body).status_code == 200
    field, text = constraint_of(engine.seen[0])
    assert (field, json.loads(text)) == ("json_schema", PERSON)


@pytest.mark.parametrize(("more", "expected"), OTHERS)
def test_other_constraints_in_openais_bodies(make_client, more, expected):
    engine = FakeEngine()
    assert make_client(engine).post(CHAT, HI | more).status_code == 200
    assert constraint_of(engine.seen[0]) == expected


@pytest.fixture(scope="module")
def engine():
    return TinyEngine(engine=Engine(EngineConfig(), AsciiRunner()))


REFUSED = [
    (CHAT, HI | {"guided_json": {"not": {}}}, "guided_json"),
    (CHAT, HI | {"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"$ref": "http://x/"}}}}, "response_format"),
    (CHAT, HI | {"structured_outputs": {"regex": "("}, "n": 2}, "structured_outputs"),
    ("/v1/completions", {"prompt": "a", "ebnf": "root ::= nobody"}, "ebnf"),
    ("/generate", {"text": "a", "sampling_params": {"regex": "[b-a]"}}, "sampling_params.regex"),
    ("/generate", {"prompt": "a", "grammar": "start: start"}, "grammar"),
    ("/generate", {"prompt": "a", "regex": "a" * 9000}, "regex"),
    # Of every kind that could cost more than a line.
    (CHAT, HI | {"guided_json": {"$ref": "#"}}, "guided_json"),
    (CHAT, HI | {"guided_json": {"$ref": "#/$defs/a", "$defs": {
        "a": {"allOf": [{"$ref": "#/$defs/a"}]}}}}, "guided_json"),
    (CHAT, HI | {"guided_json": {"type": "object", "properties": {"a": {"$ref": "#"}},
                                 "required": ["a"]}}, "guided_json"),
    (CHAT, HI | {"guided_json": {"type": "string", "description": "x" * 3_000_000}}, "guided_json"),
    (CHAT, HI | {"guided_json": {"type": "integer", "minimum": 3, "maximum": 2}}, "guided_json"),
    (CHAT, HI | {"guided_json": {"type": "object", "minProperties": 3}}, "guided_json"),
    (CHAT, HI | {"guided_json": {"type": "string", "allOf": [
        {"pattern": f"{chr(97 + i % 26)}.{{{i}}}x"} for i in range(999)]}}, "guided_json"),
    (CHAT, HI | {"guided_grammar": 'start: start "a"'}, "guided_grammar"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "field"), REFUSED)
def test_what_does_not_compile_is_a_400_under_the_clients_name(
    make_client, engine, path, body, field, stream
):
    response = make_client(engine).post(path, body | {"stream": stream})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: ")
    assert not engine._engine.has_unfinished()


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_stream_joins_to_the_whole_answer(make_client, engine, temperature):
    client = make_client(engine)
    body = {"prompt": "ab", "json_schema": PERSON, "temperature": temperature, "seed": 7}
    whole = client.generate(body).json()
    events = client.generate(body | {"stream": True}).text.split("\n\n")
    values = [json.loads(one[6:]) for one in events if one.startswith("data: {")]
    text = "".join(one["text"] for one in values)
    assert (text, values[-1]["digest"]) == (whole["text"], whole["digest"])
    if whole["finish_reason"] == "stop":
        assert json.loads(text).keys() == {"name", "age"}
