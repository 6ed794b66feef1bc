"""What an OpenAI-compatible server answers, whole or streamed, as a check compares it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from detinfer.check.answer import Answer, ExactLogprob

Json = dict[str, Any]


@dataclass(frozen=True)
class TextAnswer(Answer):
    """An answer of a server that tells no tokens: its characters are what is compared.

    Its digest is over all that was told: text, end, and log-probabilities to the last bit.
    """

    unit: ClassVar[str] = "character"


def read_answer(value: Any) -> Answer:
    """Return an answer of either route.

    Raises:
        ValueError: it is none.
    """
    try:
        [choice] = value["choices"]
        message = choice.get("message")
        text = choice["text"] if message is None else message["content"]
        entries = _entries(choice.get("logprobs"))
        return _answer(str(text or ""), str(choice["finish_reason"]), entries)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no answer of an OpenAI-compatible server ({error!r:.80})") from None


def read_events(lines: Iterable[bytes]) -> Answer:
    """Return the answer that server-sent events come to.

    Raises:
        ValueError: they have none, or no end.
    """
    text, finish, entries = "", None, list[ExactLogprob]()
    try:
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or data == b"[DONE]":
                continue
            told = json.loads(data)
            if "error" in told:
                raise ValueError(str(told["error"]))
            for choice in told.get("choices") or ():
                delta = choice.get("delta")
                text += (choice.get("text") if delta is None else delta.get("content")) or ""
                finish = choice.get("finish_reason") or finish
                entries += _entries(choice.get("logprobs")) or ()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no stream of an OpenAI-compatible server ({error!r:.80})") from None
    if finish is None:
        raise ValueError("a stream without an end")
    return _answer(text, finish, entries or None)


def _answer(text: str, finish: str, entries: list[ExactLogprob] | None) -> Answer:
    told = [text, finish, [[one.token_id, one.logprob, one.top] for one in entries or ()]]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    if not entries:
        return TextAnswer(tuple(text), text, finish, digest)
    tokens = tuple(one.token_id for one in entries)
    return Answer(tokens, text, finish, digest, tuple(entries))


def _entries(told: Any) -> list[ExactLogprob] | None:
    """Return the log-probabilities of a choice; None where it has none."""
    if not told:
        return None
    if told.get("content") is not None:  # of a chat
        return [
            ExactLogprob.of(
                str(one["token"]),
                _number(one["logprob"]),
                [(str(x["token"]), _number(x["logprob"])) for x in one.get("top_logprobs") or ()],
            )
            for one in told["content"]
        ]
    tokens = told.get("tokens")
    if not tokens:
        return None
    tops = told.get("top_logprobs") or [{}] * len(tokens)
    return [
        ExactLogprob.of(
            str(token),
            _number(value),
            [(one, _number(x)) for one, x in sorted((top or {}).items(), key=_likeliest)],
        )
        for token, value, top in zip(tokens, told["token_logprobs"], tops, strict=True)
    ]


def _likeliest(entry: tuple[str, float | None]) -> tuple[float, str]:
    return -(entry[1] or 0.0), entry[0]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
