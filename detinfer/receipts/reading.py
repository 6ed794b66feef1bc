"""Receipts read strictly: what is none is refused by name, whatever its size and depth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from detinfer.errors import RequestError
from detinfer.params import SamplingParams
from detinfer.receipts.receipt import FIELDS, FORM, Receipt, ReceiptError, Value

MAX_BYTES = 64 << 20  # of a receipt's JSON
MAX_DEPTH = 8


def read_json(data: bytes) -> Value:
    """Return a receipt's JSON, sealed or not.

    Raises:
        ReceiptError: it is too large, too deep, or no JSON object.
    """
    if len(data) > MAX_BYTES:
        raise ReceiptError(f"receipt: got {len(data)} bytes, expected at most {MAX_BYTES}")
    if _depth(data) > MAX_DEPTH:
        raise ReceiptError(f"receipt: got JSON of more than {MAX_DEPTH} levels")
    try:
        value = json.loads(data, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ReceiptError(f"receipt: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ReceiptError(f"receipt: got {type(value).__name__}, expected an object")
    return value


def parse(value: Value) -> Receipt:
    """Read a receipt strictly: every part there, each of its kind, none besides.

    Raises:
        ReceiptError: naming the part.
    """
    form = value.get("form")
    if form != FORM:
        raise ReceiptError(f"form: got {form!r}, expected {FORM!r}")
    parts = _parts(
        "receipt",
        value,
        {
            "form": str,
            "model": str,
            "system_fingerprint": str,
            "fingerprint": dict,
            "prompt": dict,
            "parameters": dict,
            "answer": dict,
        },
    )
    if not all(isinstance(one, str) for one in parts["fingerprint"].values()):
        raise ReceiptError("fingerprint: expected strings by name")
    prompt = _parts("prompt", parts["prompt"], {"token_ids": list, "sha256": str})
    kinds = {"token_ids": list, "checksums": list, "text": str, "finish_reason": str, "digest": str}
    answer = _parts("answer", parts["answer"], kinds)
    token_ids = _ids("answer.token_ids", answer["token_ids"])
    checksums = [_sums(one) for one in answer["checksums"]]
    if len(checksums) != len(token_ids):
        raise ReceiptError(
            f"answer.checksums: got {len(checksums)}, expected one for each of "
            f"{len(token_ids)} tokens"
        )
    return Receipt(
        model=parts["model"],
        system_fingerprint=parts["system_fingerprint"],
        fingerprint=parts["fingerprint"],
        prompt_token_ids=_ids("prompt.token_ids", prompt["token_ids"]),
        prompt_digest=prompt["sha256"],
        params=_params(parts["parameters"]),
        token_ids=token_ids,
        checksums=checksums,
        text=answer["text"],
        finish_reason=answer["finish_reason"],
        digest=answer["digest"],
    )


def _parts(where: str, value: Value, kinds: Mapping[str, type]) -> Value:
    for name in sorted(kinds.keys() | value.keys()):
        if name not in value:
            raise ReceiptError(f"{where}: {name} is missing")
        if name not in kinds:
            raise ReceiptError(f"{where}: got {name!r}, which no receipt of {FORM} has")
        if not isinstance(value[name], kinds[name]):
            raise ReceiptError(
                f"{where}.{name}: got {type(value[name]).__name__}, expected {kinds[name].__name__}"
            )
    return value


def _ids(where: str, ids: list[Any]) -> list[int]:
    if not ids or not all(type(one) is int and 0 <= one < 1 << 31 for one in ids):
        raise ReceiptError(f"{where}: expected token ids, one at least")
    return ids


def _sums(text: Any) -> tuple[int, int]:
    try:
        if len(text) == 32 and text == text.lower():
            return int(text[:16], 16), int(text[16:], 16)
    except (TypeError, ValueError, AttributeError):
        pass
    raise ReceiptError(f"answer.checksums: got {str(text)[:40]!r}, expected 32 hex digits")


def _params(value: Value) -> SamplingParams:
    if set(value) != set(FIELDS):
        odd = sorted(set(value) ^ set(FIELDS))
        raise ReceiptError(f"parameters: missing or unknown: {', '.join(odd)}")
    given = dict(value)
    try:
        given["logit_bias"] = {int(key): bias for key, bias in given["logit_bias"].items()}
        if given["seed"] is not None:
            given["seed"] = int(given["seed"])
        return SamplingParams(**given, checksums=True)
    except RequestError as error:
        raise ReceiptError(f"parameters: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ReceiptError(f"parameters: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> Value:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _depth(data: bytes) -> int:
    """Levels of brackets, those in strings left out, up to the first beyond ``MAX_DEPTH``."""
    depth = most = 0
    for piece in data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]:
        for byte in piece:
            if byte in b"[{":
                depth += 1
                most = max(most, depth)
                if most > MAX_DEPTH:
                    return most
            elif byte in b"]}":
                depth -= 1
    return most
