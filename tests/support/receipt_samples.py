"""Receipts of an engine without a model, and how they can be wrong."""

import copy

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_runner import VOCAB, FakeRunner, fake_engine

from detinfer.engine.llm import LLM
from detinfer.params import SamplingParams
from detinfer.receipts import seal
from detinfer.receipts.reading import MAX_BYTES
from detinfer.receipts.receipt import chain_digest, prompt_digest, receipt_of, receipt_params
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
