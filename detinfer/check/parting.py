"""Where an answer leaves the one its prompt gets alone, and how near the two candidates were.

The prompt alone and the load are played once more, asked for log-probabilities: the token that each
took, and what each thought of the other's. What they are is exact, to the last bit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from detinfer.check.answer import Answer, ExactLogprob, Token
from detinfer.check.load import Load, Row
from detinfer.check.subject import Subject
from detinfer.errors import DetinferError
from detinfer.params import MAX_LOGPROBS, SamplingParams


@dataclass(frozen=True)
class Side:
    """What one of the two answers makes of the candidates.

    Attributes:
        token: the one it took.
        own: its log-probability, hexadecimal; None if it was not told.
        other: that of the token that the other answer took.
    """

    token: Token
    own: str | None
    other: str | None

    @property
    def margin(self) -> float | None:
        """By how much its own token was ahead; below 0 where noise chose it."""
        if self.own is None or self.other is None:
            return None
        return float.fromhex(self.own) - float.fromhex(self.other)

    def to_json(self) -> dict[str, Any]:
        """As JSON values: floats, and beside them their every bit."""
        margin = self.margin
        return {
            "token": self.token,
            "logprob": _float(self.own),
            "other_logprob": _float(self.other),
            "margin": margin,
            "exact": [self.own, self.other, None if margin is None else margin.hex()],
        }

    @property
    def told(self) -> str:
        """In words."""
        if self.own is None:
            return f"token {self.token!r}"
        words = f"token {self.token!r} at {_float(self.own)!r}"
        if self.other is None:
            return f"{words}, the other not among the {MAX_LOGPROBS} likeliest"
        margin = self.margin
        assert margin is not None
        return f"{words}, the other at {_float(self.other)!r}: margin {margin:.9g} ({margin.hex()})"


@dataclass(frozen=True)
class Parting:
    """Where two answers part.

    Attributes:
        position: place of the first token that differs, or of the first log-probability.
        tokens: whether tokens part there, or log-probabilities alone.
    """

    position: int
    tokens: bool
    alone: Side
    load: Side

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "position": self.position,
            "tokens": self.tokens,
            "alone": self.alone.to_json(),
            "load": self.load.to_json(),
        }

    @property
    def lines(self) -> tuple[str, str, str]:
        """In words: a line on the place, and one a side."""
        what = "the answers part" if self.tokens else "the log-probabilities part"
        return (
            f"{what} at token {self.position + 1}:",
            f"  alone:       {self.alone.told}",
            f"  in the load: {self.load.told}",
        )


def part(
    subject: Subject, alone: Load, load: Load, row: int, expected: Answer, got: Answer
) -> Parting | None:
    """Return where the answer of a load's row leaves the one alone; None if nothing tells.

    Where asking for log-probabilities makes the difference go away, it is of the answers as they
    were, without any.
    """
    asked = _asking(alone, 0), _asking(load, row)
    if asked[0] is not None and asked[1] is not None:
        try:
            ours, theirs = subject.play(asked[0])[0], subject.play(asked[1])[row]
        except DetinferError:
            pass  # a failure is told of elsewhere
        else:
            found = parting_of(ours, theirs)
            if found is not None and (found.tokens or expected.token_ids == got.token_ids):
                return found
    return parting_of(expected, got)


def parting_of(alone: Answer, load: Answer) -> Parting | None:
    """Return where two answers part, from what they tell."""
    position = alone.first_difference(load)
    tokens = position is not None
    if position is None:
        pairs = zip(alone.logprobs or (), load.logprobs or (), strict=False)
        position = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
    if position is None:
        return None
    ours, theirs = alone.token_at(position), load.token_at(position)
    if ours is None or theirs is None:  # one of them ends there
        return None
    if not tokens:  # what was second
        second = _second(alone, position)
        return Parting(
            position, False, _side(alone, position, second), _side(load, position, second)
        )
    return Parting(position, True, _side(alone, position, theirs), _side(load, position, ours))


def _asking(load: Load, at: int) -> Load | None:
    """Return a load of which one row asks for as many log-probabilities as there may be."""
    row: Row = load.rows[at]
    if not isinstance(row.params, SamplingParams):
        return None
    params = dataclasses.replace(row.params, logprobs=MAX_LOGPROBS)
    changed = dataclasses.replace(row, params=params)
    return dataclasses.replace(load, rows=(*load.rows[:at], changed, *load.rows[at + 1 :]))


def _entry(answer: Answer, position: int) -> ExactLogprob | None:
    told = answer.logprobs or ()
    return told[position] if position < len(told) else None


def _second(answer: Answer, position: int) -> Token | None:
    entry = _entry(answer, position)
    others = () if entry is None else entry.top
    return next((token for token, _ in others if token != answer.token_ids[position]), None)


def _side(answer: Answer, position: int, other: Token | None) -> Side:
    entry = _entry(answer, position)
    if entry is None:
        return Side(answer.token_ids[position], None, None)
    told = next((value for token, value in entry.top if token == other), None)
    return Side(answer.token_ids[position], entry.logprob, told)


def _float(exact: str | None) -> float | None:
    return None if exact is None else float.fromhex(exact)
