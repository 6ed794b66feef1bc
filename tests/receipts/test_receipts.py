"""A receipt holds for the answer it was made of and for no other; what is wrong is named."""

import copy
import json

import pytest
from constrained import AsciiRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_runner import EOS, fake_engine
from receipt_samples import (
    BAD,
    EDITS,
    GREEDY,
    KEY,
    PROMPT,
    SAMPLED,
    change,
    edited,
    engine,
    made,
    made_consistent,
)

from detinfer.engine.llm import LLM
from detinfer.params import SamplingParams
from detinfer.receipts import seal
from detinfer.receipts.reading import parse, read_json
from detinfer.receipts.receipt import ReceiptError, receipt_of, receipt_params
from detinfer.receipts.replay import verify
from detinfer.receipts.verdict import examine
from detinfer.runner.fingerprint import PARTS, Fingerprint

PARAMS = {"sampled": SAMPLED, "greedy": GREEDY}


@pytest.fixture(scope="module", params=sorted(PARAMS))
def receipt(request):
    return made(PARAMS[request.param])


@pytest.fixture(scope="module")
def sampled():
    return made(SAMPLED)


def through_a_file(value):
    return read_json(json.dumps(value, indent=2).encode())


def test_it_verifies(receipt):
    verdict = verify(through_a_file(receipt), engine())
    assert verdict.match, verdict.findings
    assert verdict.tokens == len(receipt["answer"]["token_ids"])
    assert verdict.signed_by is None


def test_it_verifies_on_a_machine_with_few_pages(receipt):
    assert verify(receipt, engine(num_pages=2)).match


def test_a_constrained_answers_receipt_has_its_grammar_and_verifies():
    runner = AsciiRunner()
    runner.fingerprint = Fingerprint(dict.fromkeys(PARTS, "x") | {"profile": "portable"})
    one = fake_engine(runner=runner)
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=3, regex="(ab|c){5,30};")
    params = receipt_params(params, params.max_tokens)
    [answer] = LLM(engine=one).generate([PROMPT], params)
    value = receipt_of(one.info, answer, params).to_value()
    assert value["parameters"]["regex"] == params.regex
    assert not {"json_schema", "grammar"} & value["parameters"].keys()
    assert verify(seal.seal(value), one).match
    assert not one.has_unfinished()
    value["parameters"]["regex"] = "(abc|d){5,30};"
    assert not verify(seal.seal(value), one).match


def test_it_says_what_the_answer_said(sampled):
    parsed = parse(seal.opened(through_a_file(sampled)))
    assert parsed.params == receipt_params(SAMPLED, SAMPLED.max_tokens)
    assert parsed.prompt_token_ids == PROMPT
    assert parsed.to_value() == seal.opened(sampled)


def test_a_signature_names_its_key():
    signed = made(GREEDY, key=KEY)
    verdict = verify(through_a_file(signed), engine())
    assert verdict.match
    assert verdict.signed_by == signed["signature"]["public_key"]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_breaks_the_seal(sampled, name):
    value = edited(sampled, name, False) | {"sha256": sampled["sha256"]}
    assert "seal" in [one.part for one in verify(value, engine()).findings]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_sealed_anew_is_named(sampled, name):
    verdict = verify(seal.seal(edited(sampled, name, False)), engine())
    assert [one.part for one in verdict.findings] == [EDITS[name][1]]


@pytest.mark.parametrize("name", [name for name in EDITS if EDITS[name][2]])
def test_an_edit_made_to_fit_is_named(sampled, name):
    verdict = verify(seal.seal(edited(sampled, name, True)), engine())
    assert [one.part for one in verdict.findings] == [EDITS[name][2]]


@pytest.mark.parametrize(("index", "name"), [(9, "token"), (9, "checksum"), (0, "first token")])
def test_the_token_is_told(sampled, index, name):
    [finding] = verify(seal.seal(edited(sampled, name, True)), engine()).findings
    assert finding.token == index + 1


def test_another_model_is_told_by_its_parts(sampled):
    [finding] = verify(sampled, engine(weights="others")).findings
    assert (finding.part, finding.fingerprint_parts) == ("model", ("weights",))


@pytest.mark.parametrize("name", EDITS)
def test_no_edit_keeps_a_signature(name):
    signed = made(SAMPLED, key=KEY)
    value = seal.seal(edited(signed, name, True)) | {"signature": signed["signature"]}
    if seal.canonical(value) != seal.canonical(signed):
        assert "signature" in [one.part for one in verify(value, engine()).findings]
    else:
        assert EDITS[name][2] is None  # all that was edited is made again


def test_a_signature_by_another_key_than_it_names(sampled):
    signed = seal.seal(seal.opened(sampled), KEY)
    other_key = seal.seal(seal.opened(sampled), Ed25519PrivateKey.from_private_bytes(bytes(32)))
    signed["signature"]["public_key"] = other_key["signature"]["public_key"]
    assert [one.part for one in verify(signed, engine()).findings] == ["signature"]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_receipt_costs_one_line(name):
    data, said = BAD[name]
    with pytest.raises(ReceiptError, match=said) as error:
        read_json(data)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (change("form", to="detinfer-receipt-9"), "form: got 'detinfer-receipt-9'"),
        (lambda value: value.pop("prompt"), "prompt is missing"),
        (lambda value: value.update(extra=1), "got 'extra'"),
        (change("answer", "token_ids", to=[]), "answer.token_ids: expected"),
        (change("answer", "token_ids", 0, to=True), "answer.token_ids: expected"),
        (change("answer", "token_ids", 0, to=-1), "answer.token_ids: expected"),
        (change("answer", "checksums", to=["0" * 32]), "answer.checksums: got 1"),
        (change("answer", "checksums", 0, to="xyz"), "expected 32 hex digits"),
        (change("answer", "checksums", 0, to=7), "expected 32 hex digits"),
        (change("answer", "text", to=None), "answer.text: got NoneType"),
        (change("parameters", "seed", to="many"), "parameters: "),
        (change("parameters", "temperature", to=-1), "parameters: temperature"),
        (change("parameters", "temperature", to=10**400), "parameters: temperature: got 1000"),
        (change("parameters", "stop", to=["x" * 9, "y" * 9000]), "parameters: stop: expected"),
        (change("parameters", "top_k", to="z" * 9000), "parameters: top_k: got 'zzz"),
        (change("parameters", "logit_bias", to=[]), "parameters: "),
        (change("parameters", "q" * 9000, to=1), "parameters: missing or unknown: 'qqq"),
        (lambda value: value["parameters"].pop("top_k"), "missing or unknown: 'top_k'"),
        (change("answer", "finish_reason", to="abort"), "answer.finish_reason: got 'abort'"),
        (change("answer", "digest", to="0"), "answer.digest: got '0', expected 64 hex digits"),
        (change("prompt", "sha256", to="G" * 64), "prompt.sha256: got 'GGG"),
        (change("fingerprint", "weights", to=3), "fingerprint: expected short strings"),
        (change("fingerprint", "rope", to="x\nholds: all"), "fingerprint: expected short strings"),
        (change("fingerprint", to="x"), "receipt.fingerprint: got str"),
    ],
)  # fmt: skip
def test_a_receipt_of_another_shape_is_refused_by_name(sampled, edit, said):
    value = copy.deepcopy(seal.opened(sampled))
    edit(value)
    with pytest.raises(ReceiptError) as error:
        verify(value, engine())
    assert said in str(error.value)
    assert len(str(error.value)) < 300


DEEP = [
    change("form", to="DEEP"),
    change("model", to="DEEP"),
    change("fingerprint", "rope", to="DEEP"),
    change("parameters", "stop", to=["DEEP"]),
    change("parameters", "logit_bias", "5", to="DEEP"),
    change("answer", "checksums", 0, to="DEEP"),
]


@pytest.mark.parametrize("levels", [10, 700, 900, 950, 990, 5000])
@pytest.mark.parametrize("place", range(len(DEEP)))
def test_depth_costs_one_line_wherever_it_is(sampled, place, levels):
    value = copy.deepcopy(sampled)
    DEEP[place](value)
    data = json.dumps(value).replace('"DEEP"', "[" * levels + "]" * levels).encode()
    with pytest.raises(ReceiptError) as error:
        examine(read_json(data), None)  # which asks no engine
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 300


def test_other_parts_than_the_weights_make_no_other_model(sampled):
    value = seal.opened(copy.deepcopy(sampled))
    value["fingerprint"] |= {"tokenizer": "other", "config": "other"}
    [finding] = verify(seal.seal(made_consistent(value)), engine()).findings
    assert (finding.part, finding.fingerprint_parts) == ("fingerprint", ("config", "tokenizer"))


def test_an_answer_that_ended_by_a_stop_token_verifies():
    receipt = made(SamplingParams(max_tokens=300, logit_bias={EOS: 4.5}))
    assert receipt["answer"]["finish_reason"] == "stop"
    assert receipt["answer"]["token_ids"][-1] == EOS
    assert verify(receipt, engine()).match
