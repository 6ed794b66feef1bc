"""Receipts read strictly: what is none is refused by name, whatever its size and depth."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from detinfer.params import MAX_CONSTRAINT, SamplingParams
from detinfer.receipts.receipt import FIELDS, FORM, Receipt, ReceiptError, Value

MAX_BYTES = 64 << 20  # of a receipt's JSON
_LONGEST = 200  # characters of a complaint about parameters, which may have been anything


def read_json(data: bytes) -> Value:
    """Return a receipt's JSON, sealed or not.

    Raises:
        ReceiptError: it is too large, too deep, or no JSON object.
    """
    if len(data) > MAX_BYTES:
        raise ReceiptError(f"receipt: got {len(data)} bytes, expected at most {MAX_BYTES}")
    try:
        value = json.loads(data, object_pairs_hook=_once, parse_constant=_no_number)
    except ValueError as error:
        raise ReceiptError(f"receipt: not JSON ({error})") from None
    except RecursionError:
        raise ReceiptError("receipt: got JSON of too many levels") from None
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
        raise ReceiptError(f"form: got {_shown(form)}, expected {FORM!r}")
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
    fingerprint = parts["fingerprint"]
    if not all(map(_is_word, [parts["system_fingerprint"], *fingerprint, *fingerprint.values()])):
        raise ReceiptError("fingerprint: expected short strings by name")
    prompt = _parts("prompt", parts["prompt"], {"token_ids": list, "sha256": str})
    kinds = {"token_ids": list, "checksums": list, "text": str, "finish_reason": str, "digest": str}
    answer = _parts("answer", parts["answer"], kinds)
    reason = answer["finish_reason"]
    if reason not in ("stop", "length"):
        raise ReceiptError(f"answer.finish_reason: got {_shown(reason)}, expected stop or length")
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
        fingerprint=fingerprint,
        prompt_token_ids=_ids("prompt.token_ids", prompt["token_ids"]),
        prompt_digest=_hex("prompt.sha256", prompt["sha256"], 64),
        params=_params(parts["parameters"]),
        token_ids=token_ids,
        checksums=checksums,
        text=answer["text"],
        finish_reason=reason,
        digest=_hex("answer.digest", answer["digest"], 64),
    )


def _parts(where: str, value: Value, kinds: Mapping[str, type]) -> Value:
    for name in sorted(kinds.keys() | value.keys()):
        if name not in value:
            raise ReceiptError(f"{where}: {name} is missing")
        if name not in kinds:
            raise ReceiptError(f"{where}: got {_shown(name)}, which no receipt of {FORM} has")
        if not isinstance(value[name], kinds[name]):
            raise ReceiptError(
                f"{where}.{name}: got {type(value[name]).__name__}, expected {kinds[name].__name__}"
            )
    return value


def _ids(where: str, ids: list[Any]) -> list[int]:
    if not ids or not all(type(one) is int and 0 <= one < 1 << 31 for one in ids):
        raise ReceiptError(f"{where}: expected token ids, one at least")
    return ids


def _sums(value: Any) -> tuple[int, int]:
    text = _hex("answer.checksums", value, 32)
    return int(text[:16], 16), int(text[16:], 16)


def _hex(where: str, text: Any, digits: int) -> str:
    if not isinstance(text, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
        raise ReceiptError(f"{where}: got {_shown(text)}, expected {digits} hex digits")
    return text


def _is_word(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= 200 and text.isprintable()


def _shown(value: Any) -> str:
    """Return what was got, of whatever size and depth, in a few words."""
    return type(value).__name__ if isinstance(value, list | dict) else repr(value)[:40]


def _params(value: Value) -> SamplingParams:
    odd_ones = (set(value) ^ set(FIELDS)) - {name for name in MAX_CONSTRAINT if name not in value}
    if odd_ones:
        odd = ", ".join(map(_shown, sorted(odd_ones)))
        raise ReceiptError(f"parameters: missing or unknown: {odd[:_LONGEST]}")
    given = dict(value)
    try:
        given["logit_bias"] = {int(key): bias for key, bias in given["logit_bias"].items()}
        if given["seed"] is not None:
            given["seed"] = int(given["seed"])
        return SamplingParams(**given, checksums=True)
    except RecursionError:
        raise ReceiptError("parameters: got JSON of too many levels") from None
    except (TypeError, ValueError, AttributeError) as error:  # RequestError is a ValueError
        raise ReceiptError(f"parameters: {str(error)[:_LONGEST]}") from None


def _once(pairs: list[tuple[str, Any]]) -> Value:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
