"""One answer, and what tells it from another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from detinfer.check.load import Load

if TYPE_CHECKING:
    from detinfer.engine.outputs import RequestOutput
    from detinfer.logprobs import TokenLogprob

Token = int | str  # its id, or its text where a server tells no ids


@dataclass(frozen=True)
class ExactLogprob:
    """``TokenLogprob`` with hexadecimal floats, which are equal if and only if every bit is."""

    token_id: Token
    logprob: str
    top: tuple[tuple[Token, str], ...]

    @classmethod
    def of(
        cls, token_id: Token, logprob: float, top: Iterable[tuple[Token, float]]
    ) -> ExactLogprob:
        """From the floats."""
        exact = tuple((one, float(value).hex()) for one, value in top)
        return cls(token_id, float(logprob).hex(), exact)


@dataclass(frozen=True)
class Answer:
    """One whole answer; two are equal only if everything in them is.

    Attributes:
        digest: the digest chain over tokens and whole rows of logits.
        logprobs: one a token, bit for bit; None if they were not asked for.
        prompt_logprobs: one for each token of the prompt but the first, likewise.
    """

    token_ids: tuple[Token, ...]
    text: str
    finish_reason: str
    digest: str
    logprobs: tuple[ExactLogprob, ...] | None = None
    prompt_logprobs: tuple[ExactLogprob, ...] | None = None

    unit: ClassVar[str] = "token"  # what an answer is made of

    @classmethod
    def of(cls, outputs: Sequence[RequestOutput]) -> Answer | None:
        """Put together all that an engine gave of one request; None if it ended in failure."""
        if outputs[-1].finish_reason not in ("stop", "length"):
            return None
        return cls._of(outputs)

    @classmethod
    def of_failure(cls, outputs: Sequence[RequestOutput]) -> Answer:
        """Put together what an engine gave before it failed; why stands in place of the end."""
        return replace(cls._of(outputs), finish_reason=f"error: {outputs[-1].error}")

    @classmethod
    def _of(cls, outputs: Sequence[RequestOutput]) -> Answer:
        last = outputs[-1]
        told = [one for output in outputs for one in output.logprobs or ()]
        scored = [one.prompt_logprobs for one in outputs if one.prompt_logprobs is not None]
        return cls(
            tuple(token for output in outputs for token in output.token_ids),
            "".join(output.text for output in outputs),
            last.finish_reason or "",
            last.digest or "",
            None if last.logprobs is None else _exact(told),
            _exact(scored[0]) if scored else None,
        )

    def first_difference(self, other: Answer) -> int | None:
        """Return the place of the first token that differs; None if only something else does."""
        return _first_difference(self.token_ids, other.token_ids)

    def difference(self, other: Answer) -> str:
        """Return what differs, in words; the two must not be equal."""
        place = self.first_difference(other)
        if place is not None:
            return f"{self.unit} {place + 1} of the answer is the first that differs"
        parts = {
            "text": self.text != other.text,
            "end": self.finish_reason != other.finish_reason,
            "logits": self.digest != other.digest,
        }
        place = _first_difference(self.logprobs or (), other.logprobs or ())
        if place is not None:
            parts[f"log-probabilities from token {place + 1} on"] = True
        place = _first_difference(self.prompt_logprobs or (), other.prompt_logprobs or ())
        if place is not None:
            parts[f"log-probabilities from token {place + 2} of the prompt on"] = True
        found = [f"the {part}" for part, differs in parts.items() if differs]
        return f"the tokens agree, {' and '.join(found)} do not"

    def token_at(self, position: int | None) -> Token | None:
        """Return the token there, None past the end."""
        if position is None or position >= len(self.token_ids):
            return None
        return self.token_ids[position]


@dataclass(frozen=True)
class Divergence:
    """A run whose answer is not the one the prompt got alone.

    Attributes:
        prompt: the target's number, from 0.
        run: which of the prompt's runs, from 0.
        row: its place in the load.
        position: place of the first token that differs; None if the tokens agree.
    """

    mode: str
    prompt: int
    run: int
    load: Load
    row: int
    position: int | None
    expected: Answer
    got: Answer

    @property
    def what(self) -> str:
        """What differs, in words."""
        return self.expected.difference(self.got)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "what": self.what,
            "mode": self.mode,
            "prompt": self.prompt,
            "run": self.run,
            "row": self.row,
            "position": self.position,
            "expected": asdict(self.expected),
            "got": asdict(self.got),
            "load": self.load.describe(),
        }


def _exact(told: Iterable[TokenLogprob]) -> tuple[ExactLogprob, ...]:
    return tuple(ExactLogprob.of(one.token_id, one.logprob, one.top) for one in told)


def _first_difference(ours: Sequence[object], theirs: Sequence[object]) -> int | None:
    if ours == theirs:
        return None
    pairs = zip(ours, theirs, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
