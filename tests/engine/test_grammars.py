"""Constrained answers: valid, deterministic, and nobody else's business."""

import json
import re
import time

import jsonschema
import pytest
from constrained import PERSON, ascii_engine

from detinfer import sampling
from detinfer.config import EngineConfig
from detinfer.engine import choosing
from detinfer.engine.constraint import Constraint
from detinfer.engine.llm import LLM
from detinfer.errors import RequestError
from detinfer.params import MAX_CONSTRAINT, SamplingParams

SHORT = {"type": "string", "maxLength": 4}
SCHEMAS = [
    PERSON,
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "green", 3, None]},
    {"const": {"a": [1, "x"]}},
    {"type": "integer", "minimum": -20, "maximum": 7},
    {"type": "integer", "minimum": 3, "maximum": 99, "multipleOf": 3},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "null"}, SHORT], "items": False, "minItems": 2},
    {"type": "string", "pattern": "^[a-f]{2,4}-[0-9]{2}$"},
    {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"k": SHORT}, "required": ["k"],
     "additionalProperties": False}]},
    {"$ref": "#/$defs/one", "$defs": {"one": {"type": "array", "items": SHORT, "maxItems": 2}}},
    {"type": "object", "properties": {"d": {"type": "string", "format": "date"}}, "required": ["d"],
     "additionalProperties": False},
    True,
]  # fmt: skip
PROMPT = [72, 73, 33]


def run(engine, requests):
    """Every answer's ids, text, digest, reason and log-probabilities, by the request's name."""
    got = {}
    for name, (prompt, params) in requests.items():
        engine.add_request(name, prompt, params)
        got[name] = {"ids": [], "text": "", "logprobs": []}
    while engine.has_unfinished():
        for output in engine.step():
            one = got[output.request_id]
            one["ids"] += output.token_ids
            one["text"] += output.text
            one["logprobs"] += output.logprobs or []
            if output.finish_reason is not None:
                one |= {"reason": output.finish_reason, "digest": output.digest}
                one |= {"error": output.error}
        engine.check_integrity()
    return got


@pytest.fixture(scope="module")
def engines():
    return [ascii_engine(EngineConfig(speculation=on)) for on in (True, False)]


def drawn(**options):
    return SamplingParams(**{"max_tokens": 90, "seed": 5, **options})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_that_stop_are_valid(engines, temperature):
    requests = {
        f"{i}-{seed}": (PROMPT, drawn(json_schema=schema, temperature=temperature, seed=seed))
        for i, schema in enumerate(SCHEMAS)
        for seed in range(3 if temperature else 1)
    }
    got = run(engines[0], requests)
    stopped = [name for name, one in got.items() if one["reason"] == "stop"]
    assert len(stopped) >= 0.7 * len(got)
    for one in got.values():
        assert one["reason"] in ("stop", "length"), one
    for name in stopped:
        schema = json.loads(requests[name][1].json_schema)
        jsonschema.validate(json.loads(got[name]["text"]), schema)


MIXED = {
    "person": drawn(json_schema=PERSON, temperature=1.0),
    "greedy": drawn(json_schema=PERSON),
    "regex": drawn(regex="(ab|c){2,9};", temperature=0.8, top_k=3, logprobs=2),
    "lark": drawn(grammar='start: "x" | "(" start ")"', temperature=1.0, presence_penalty=0.5),
    "gbnf": drawn(grammar='root ::= [0-9]+ "." [0-9]', repetition_penalty=1.3, min_tokens=6),
    "nucleus": drawn(regex="[a-m]{5,20}", temperature=1.2, top_p=0.8, min_p=0.01),
    "bias": drawn(regex="[a-z]*", logit_bias={101: 9.0}, min_tokens=9, max_tokens=30),
    "stop": drawn(regex="[a-z]+!", stop=("q", "ee"), temperature=1.0),
    "ends": drawn(regex="[a-z]+", ignore_eos=True, temperature=1.5, max_tokens=40),
    "free": drawn(max_tokens=25, temperature=1.0),
}


def test_a_crowd_with_other_grammars_and_drafts_change_no_bit(engines):
    requests = {name: (PROMPT, params) for name, params in MIXED.items()}
    alone = {}
    for name, one in requests.items():
        alone |= run(engines[0], {name: one})
    crowd = [run(engine, requests) for engine in engines]
    backwards = run(engines[0], dict(reversed(requests.items())))
    assert alone == crowd[0] == crowd[1] == backwards
    assert engines[0].stats()["accepted_tokens"] > 20
    for name in ("regex", "lark", "gbnf"):
        pattern = {"regex": "(ab|c){2,9};", "lark": r"(\()*x(\))*", "gbnf": r"[0-9]+\.[0-9]"}[name]
        if alone[name]["reason"] == "stop":
            assert re.fullmatch(pattern, alone[name]["text"])


def test_masks_made_for_every_token_choose_the_same(engines, monkeypatch):
    requests = {name: (PROMPT, params) for name, params in MIXED.items()}
    plain, real, asked = run(engines[0], requests), Constraint.masks, []

    def made(self, draft, chosen):
        asked.extend(chosen)
        return real(self, draft, [None] * len(chosen))

    monkeypatch.setattr(Constraint, "masks", made)
    assert run(engines[0], requests) == plain
    kinds = [token is None for token in asked]
    assert any(kinds)
    assert not all(kinds)


@pytest.mark.parametrize("order", ["slot", "shared"])
def test_a_mask_of_somebody_elses_is_found_out(engines, monkeypatch, order):
    """The negative control: masks handed out by the place of a row, or made of shared progress."""
    requests = {name: (PROMPT, params) for name, params in MIXED.items()}
    plain = run(engines[0], requests)
    if order == "slot":
        real = choosing._masks

        def shifted(*given):
            found = real(*given)
            return [
                [other[0] if one and other else None, *one[1:]][: len(one)]
                for one, other in zip(found, [*found[1:], *found[:1]], strict=True)
            ]

        monkeypatch.setattr(choosing, "_masks", shifted)
    else:
        monkeypatch.setattr(Constraint, "take", lambda self, token: None)
    assert run(ascii_engine(), requests) != plain


def test_log_probabilities_and_digest_are_those_of_raw_logits(engines):
    free = run(engines[0], {"a": (PROMPT, drawn(max_tokens=1, logprobs=5))})["a"]
    bound = run(engines[0], {"a": (PROMPT, drawn(max_tokens=1, logprobs=5, regex="[0-9]+"))})["a"]
    assert bound["ids"] != free["ids"]
    assert bound["logprobs"][0].top == free["logprobs"][0].top


def test_n_answers_are_those_of_one_each():
    llm = LLM(engine=ascii_engine())
    several = llm.generate([PROMPT], drawn(n=3, temperature=1.0, json_schema=PERSON))
    assert len({one.text for one in several}) == 3
    for one in several:
        [again] = llm.generate(
            [PROMPT], drawn(temperature=1.0, seed=one.seed, json_schema=json.dumps(PERSON))
        )
        assert (again.text, again.digest) == (one.text, one.digest)


def test_the_end_comes_when_nothing_can_follow(engines):
    for params in (
        drawn(regex="abc", min_tokens=9, max_tokens=9),
        drawn(regex="abc", max_tokens=3),
        drawn(regex="abc", ignore_eos=True),
    ):
        one = run(engines[0], {"a": (PROMPT, params)})["a"]
        assert (one["text"], one["reason"], len(one["ids"])) == ("abc", "stop", 3)
    cut = run(engines[0], {"a": (PROMPT, drawn(regex="abcd", max_tokens=3))})["a"]
    assert (cut["text"], cut["reason"]) == ("abc", "length")


def test_a_bound_of_the_work_ends_one_request(engines):
    many = {"type": "object", "properties": {f"k{i}": {"const": i} for i in range(1300)}}
    with pytest.raises(RequestError, match=r"json_schema: .*max is 2000"):  # met at once
        engines[0].add_request("a", PROMPT, drawn(json_schema=many))
    later = drawn(json_schema={"anyOf": [many, {"type": "null"}]}, logit_bias={ord("{"): 99.0})
    requests = {"a": (PROMPT, later), "b": (PROMPT, MIXED["person"])}
    got = run(engines[0], requests)
    assert got["a"]["reason"] == "error"
    assert "max is 2000" in got["a"]["error"]
    assert got["b"] == run(engines[0], {"b": requests["b"]})["b"]


BAD = {
    "no JSON": ({"json_schema": "{"}, "json_schema"),
    "a number": ({"json_schema": "3"}, "json_schema"),
    "false": ({"json_schema": False}, "json_schema"),
    "not": ({"json_schema": {"not": {}}}, "json_schema"),
    "contradictory": ({"json_schema": {"allOf": [{"type": "null"}, SHORT]}}, "json_schema"),
    "remote": ({"json_schema": {"$ref": "http://localhost/x"}}, "json_schema"),
    "itself": ({"json_schema": {"$ref": "#"}}, "json_schema"),
    "deep": ({"json_schema": '{"items":' * 7000 + "{}" + "}" * 7000}, "json_schema"),
    "deep dict": ({"json_schema": {"const": "[" * 10}, "regex": "a"}, "regex"),
    "multiple": ({"json_schema": {"multipleOf": 1000003}}, "json_schema"),
    "multiples": ({"json_schema": {"anyOf": [{"multipleOf": 9973}, {"multipleOf": 0.7}]}}, "json_"),
    "large": ({"json_schema": '"' + "x" * 10_000_000 + '"'}, "json_schema"),
    "unclosed": ({"regex": "("}, "regex"),
    "parentheses": ({"regex": "(" * 4000 + ")" * 4000}, "regex"),
    "look-ahead": ({"regex": "(?=a)b"}, "regex"),
    "surrogate": ({"regex": "\ud800"}, "regex"),
    "number": ({"regex": 5}, "regex"),
    "empty": ({"grammar": ""}, "grammar"),
    "unknown rule": ({"grammar": "start: nobody"}, "grammar"),
    "endless": ({"grammar": "start: start"}, "grammar"),
    "nested": ({"grammar": "start: " + "(" * 60_000}, "grammar"),
    "gbnf": ({"grammar": "root ::= " + "(" * 60_000}, "grammar"),
    "two": ({"grammar": "start: start", "json_schema": {}}, "grammar"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_a_line_that_names_it(engines, case):
    options, field = BAD[case]
    began = time.process_time()
    with pytest.raises(RequestError) as refused:
        engines[0].add_request("bad", PROMPT, drawn(**options))
    message = str(refused.value)
    assert message.startswith(field)
    assert "\n" not in message
    assert len(message) < 400
    assert time.process_time() - began < 5  # under a second of this process
    assert not engines[0].has_unfinished()
    engines[0].check_integrity()


@pytest.mark.parametrize(
    "regex", ["(a+)+b", "(a|aa)*" * 50 + "c", "(.*a.{300}b){1,20}", "a?" * 4000]
)
def test_a_catastrophic_regex_is_none_here(engines, regex):
    began = time.process_time()
    one = run(engines[0], {"a": (PROMPT, drawn(regex=regex, max_tokens=20))})["a"]
    assert one["reason"] in ("stop", "length", "error")  # of a bound, met
    assert time.process_time() - began < 10  # a second or two; one that backtracks takes for ever


def test_a_long_chain_of_rules_takes_no_process_down(engines):
    chain = "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(4500)) + '\na4500: "y"'
    assert len(chain) < MAX_CONSTRAINT["grammar"]
    assert run(engines[0], {"a": (PROMPT, drawn(grammar=chain))})["a"]["text"] == "y"


def test_a_request_can_be_ended_while_its_grammar_compiles():
    engine = ascii_engine()
    engine.add_request("a", PROMPT, MIXED["person"], wait=False)
    engine.add_request("b", PROMPT, MIXED["regex"], wait=False)
    with pytest.raises(RequestError, match="in use"):
        engine.add_request("a", PROMPT, MIXED["free"])
    assert engine.stats()["waiting"] == 2
    output = engine.abort("a")
    assert (output.finish_reason, output.token_ids) == ("abort", [])
    engine.check_integrity()
    [last] = engine.abort_all("over")
    assert (last.request_id, last.error) == ("b", "over")
    assert not engine.has_unfinished()
    engine.add_request("c", PROMPT, MIXED["regex"], wait=False)
    engine.discard(["c"])
    assert not engine.has_unfinished()


def test_requests_enter_when_their_grammars_are_there():
    engine, got, refused = ascii_engine(), {}, []
    engine.add_request("bad", PROMPT, drawn(regex="("), wait=False)
    engine.add_request("good", PROMPT, MIXED["person"], wait=False)
    while engine.has_unfinished():
        for output in engine.step():
            got.setdefault(output.request_id, []).extend(output.token_ids)
        refused += engine.refused
        engine.check_integrity()
    [(name, error)] = refused
    assert (name, error.param) == ("bad", "regex")
    assert got == {"good": run(engine, {"good": (PROMPT, MIXED["person"])})["good"]["ids"]}


def test_masked_ends_stay_where_nothing_else_is_left():
    import numpy as np

    allowed = np.array([0b00000110], dtype=np.uint8)
    params = SamplingParams()
    for masked, kept in (([1], [2]), ([1, 2], [1, 2]), ([], [1, 2])):
        row = sampling.SamplingRow(params, 0, 0, np.array(masked, dtype=np.int64), allowed=allowed)
        assert sampling._candidates(row, 8).tolist() == kept
