"""Thousands of schemas: whatever is not refused by name gives answers that are valid by it."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from decimal import Decimal, InvalidOperation
from pathlib import Path

import jsonschema
import pytest
from constrained import ascii_engine
from drawn_schemas import drawn_schemas
from jsonschema.validators import validator_for
from walks import accepts, compiled, compiler, walk

from detinfer.engine.llm import LLM
from detinfer.errors import RequestError
from detinfer.params import SamplingParams

SUITE = Path(__file__).parent / "json_schema_test_suite"
WALKS = 3  # of each schema


def suite():
    """Every schema of the suite with its examples, by file and description."""
    for path in sorted(SUITE.glob("draft*/**/*.json")):
        for case in json.loads(path.read_text()):
            yield f"{path.relative_to(SUITE)}: {case['description']}", case["schema"], case["tests"]


def exactly(number):
    try:
        return Decimal(number)
    except InvalidOperation:  # an exponent that nothing has
        return float(number)


def validate(text, schema):
    """Raises ValidationError. Numbers are what is written: 0.7482 is a multiple of 0.0001."""
    schema = json.loads(json.dumps(schema), parse_float=exactly)
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    checked = kind(schema, format_checker=kind.FORMAT_CHECKER)
    checked.validate(json.loads(text, parse_float=exactly))


def walked(by, schemas):
    """How answers by each of the schemas ended, those that stopped having been validated."""
    ends = Counter()
    for number, schema in enumerate(schemas):
        try:
            params = SamplingParams(json_schema=json.dumps(schema))
            constraints = [compiled(by, params) for _ in range(WALKS)]
        except RequestError as error:
            refused = error
        else:
            refused = None
        if refused is not None:
            assert refused.param == "json_schema"
            assert re.fullmatch("json_schema: .{1,400}", str(refused))
            ends["refused"] += 1
            continue
        rng = random.Random(number)
        for constraint in constraints:
            reason, text = walk(constraint, rng)
            ends[reason] += 1
            if reason == "stop":
                validate(text, schema)
    return ends


def test_answers_by_drawn_schemas_are_valid():
    ends = walked(compiler(), drawn_schemas(100, drawn_from=1))
    print(dict(ends))
    assert ends["stop"] > 100
    assert ends["refused"] > 5


@pytest.mark.slow
def test_answers_by_two_thousand_drawn_schemas_are_valid():
    ends = walked(compiler(), drawn_schemas(2000, drawn_from=20261129))
    print(dict(ends))
    assert ends["stop"] > 1500


def test_answers_by_the_suites_schemas_are_valid_and_its_invalid_examples_are_not_accepted():
    by, ends = compiler(), Counter()
    for name, schema, examples in suite():
        ends += walked(by, [schema])
        for example in examples:
            try:
                constraint = compiled(by, SamplingParams(json_schema=json.dumps(schema)))
            except RequestError:
                break
            accepted = accepts(constraint, json.dumps(example["data"], ensure_ascii=False).encode())
            assert not accepted or example["valid"], f"{name}: {example['description']}"
            ends["valid" if example["valid"] else "invalid", accepted] += 1
    print(dict(ends))
    assert ends["stop"] > 100
    assert ends["valid", True] > 400


def test_so_are_those_that_an_engine_gives():
    llm = LLM(engine=ascii_engine())
    ends = Counter()
    for number, schema in enumerate(drawn_schemas(200, drawn_from=2)):
        params = SamplingParams(
            json_schema=json.dumps(schema), max_tokens=120, temperature=1.0, seed=number
        )
        try:
            [answer] = llm.generate([[72, 73, 33]], params)
        except RequestError:
            ends["refused"] += 1
            continue
        ends[answer.finish_reason] += 1
        if answer.finish_reason == "stop":
            validate(answer.text, schema)
    print(dict(ends))
    assert ends["stop"] >= 30
