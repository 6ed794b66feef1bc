"""A receipt holds for the answer it was made of and for no other; what is wrong is named."""

import copy
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_runner import EOS, VOCAB, FakeRunner, fake_engine

from detinfer.engine.llm import LLM
from detinfer.params import SamplingParams
from detinfer.receipts import seal
from detinfer.receipts.reading import MAX_BYTES, parse, read_json
from detinfer.receipts.receipt import (
    ReceiptError,
    chain_digest,
    prompt_digest,
    receipt_of,
    receipt_params,
)
from detinfer.receipts.replay import verify
from detinfer.receipts.verdict import examine
from detinfer.runner.fingerprint import PARTS, Fingerprint

PROMPT = [5, 6, 7, 8, 9, 5, 6, 7]
SAMPLED = SamplingParams(
    max_tokens=40,
    temperature=0.9,
    top_p=0.95,
    top_k=40,
    seed=(1 << 64) - 3,
    repetition_penalty=1.1,
    presence_penalty=0.5,
    frequency_penalty=0.25,
    logit_bias={3: -2.5},
    min_tokens=2,
    stop=("zzz",),
    stop_token_ids=(94,),
)
GREEDY = SamplingParams(max_tokens=25, ignore_eos=True)
PARAMS = {"sampled": SAMPLED, "greedy": GREEDY}
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def engine(weights="w", **changes):
    runner = FakeRunner(**changes)
    parts = dict.fromkeys(PARTS, "x") | {"profile": "portable", "contract": "portable-1"}
    runner.fingerprint = Fingerprint(parts | {"weights": weights})
    return fake_engine(runner=runner)


def made(params, prompt=PROMPT, key=None):
    one = engine()
    params = receipt_params(params, params.max_tokens)
    [answer] = LLM(engine=one).generate([prompt], params)
    return seal.seal(receipt_of(one.info, answer, params).to_value(), key)


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


def made_consistent(value):
    """What a forger does who knows how receipts are made, but has no key."""
    answer, prompt = value["answer"], value["prompt"]
    sums = [(int(one[:16], 16), int(one[16:], 16)) for one in answer["checksums"]]
    answer["digest"] = chain_digest(answer["token_ids"], sums)
    prompt["sha256"] = prompt_digest(prompt["token_ids"])
    try:
        value["system_fingerprint"] = Fingerprint(value["fingerprint"]).system_fingerprint
    except Exception:
        assert len(value["fingerprint"]) != len(PARTS)
    return value


def change(*path, to):
    def edit(value):
        *parents, name = path
        for parent in parents:
            value = value[parent]
        value[name] = to(value[name]) if callable(to) else to

    return edit


def drop_last(value):
    value["answer"]["token_ids"].pop()
    value["answer"]["checksums"].pop()


def append(value):
    value["answer"]["token_ids"].append(1)
    value["answer"]["checksums"].append("0" * 32)


def swap(value):
    for name in ("token_ids", "checksums"):
        items = value["answer"][name]
        items[3], items[4] = items[4], items[3]


def parameter(name, to):
    return change("parameters", name, to=to)


def other(token):
    return (token + 1) % 90


ZEROS = "0" * 64
# name: (edit, part named if the rest is left as it was, part named if the rest is made to fit)
EDITS = {
    "token": (change("answer", "token_ids", 9, to=other), "digest", "token"),
    "first token": (change("answer", "token_ids", 0, to=other), "digest", "token"),
    "last token": (change("answer", "token_ids", -1, to=other), "digest", "token"),
    "token of no vocabulary": (
        change("answer", "token_ids", 2, to=VOCAB + 5), "digest", "answer"),
    "checksum": (change("answer", "checksums", 9, to="0" * 32), "digest", "token"),
    "last checksum": (change("answer", "checksums", -1, to="f" * 32), "digest", "token"),
    "shorter": (drop_last, "digest", "answer"),
    "longer": (append, "digest", "answer"),
    "swapped": (swap, "digest", "token"),
    "text": (change("answer", "text", to="hello"), "answer", "answer"),
    "finish reason": (change("answer", "finish_reason", to="stop"), "answer", "answer"),
    "digest": (change("answer", "digest", to=ZEROS), "digest", None),
    "prompt token": (change("prompt", "token_ids", 2, to=other), "prompt", "token"),
    "prompt shorter": (change("prompt", "token_ids", to=lambda ids: ids[1:]), "prompt", "token"),
    "prompt longer": (change("prompt", "token_ids", to=lambda ids: [1, *ids]), "prompt", "token"),
    "prompt of no vocabulary": (
        change("prompt", "token_ids", 0, to=VOCAB), "prompt", "prompt"),
    "prompt's digest": (change("prompt", "sha256", to=ZEROS), "prompt", None),
    "temperature": (parameter("temperature", 2.5), "token", "token"),
    "greedy": (parameter("temperature", 0.0), "token", "token"),
    "seed": (parameter("seed", "7"), "token", "token"),
    "no seed": (parameter("seed", None), "token", "token"),
    "top_k": (parameter("top_k", 1), "token", "token"),
    "top_p": (parameter("top_p", 0.05), "token", "token"),
    "min_p": (parameter("min_p", 0.9), "token", "token"),
    "repetition penalty": (parameter("repetition_penalty", 3.0), "token", "token"),
    "presence penalty": (parameter("presence_penalty", 2.0), "token", "token"),
    "frequency penalty": (parameter("frequency_penalty", 2.0), "token", "token"),
    "fewer tokens": (parameter("max_tokens", 12), "answer", "answer"),
    "more tokens": (parameter("max_tokens", 60), "answer", "answer"),
    "longer than the model": (parameter("max_tokens", 5000), "parameters", "parameters"),
    "weights": (change("fingerprint", "weights", to="v"), "fingerprint", "model"),
    "contract": (change("fingerprint", "contract", to="portable-2"), "fingerprint", "fingerprint"),
    "fewer parts": (lambda value: value["fingerprint"].pop("rope"), "fingerprint", "fingerprint"),
    "fingerprint": (
        change("system_fingerprint", to="detinfer-0.1.0-portable-1-0123456789ab"),
        "fingerprint", None),
}  # fmt: skip


def edited(value, name, consistent):
    value = seal.opened(copy.deepcopy(value))
    EDITS[name][0](value)
    return made_consistent(value) if consistent else value


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


BAD = {
    "empty": (b"", "not JSON"),
    "truncated": (b'{"form": "detinfer-receipt-1", "mod', "not JSON"),
    "list": (b"[]", "got list, expected an object"),
    "deep": (b'{"form": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON of too many levels"),
    "deep objects": (b'{"form":' * 100_000 + b"1" + b"}" * 100_000, "JSON of too many levels"),
    "twice": (b'{"form": 1, "form": 2}', "stands twice"),
    "NaN": (b'{"form": NaN}', "NaN is no number"),
    "not text": (b"\xff\xfe{}", "not JSON"),
    "large": (b" " * (MAX_BYTES + 1), "expected at most"),
}


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
