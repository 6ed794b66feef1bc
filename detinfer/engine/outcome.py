"""What a step's logits say of one row, and what that adds to its request."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from detinfer.engine.outputs import FinishReason
from detinfer.logprobs import TokenLogprob


class Choice(NamedTuple):
    """The token chosen from a row of logits (-1: none could be), and what is said of the row."""

    token: int
    sums: tuple[int, int]
    logprob: TokenLogprob | None


class Outcome(NamedTuple):
    """What a step's logits say of one row.

    Attributes:
        scores: log-probabilities of the prompt's tokens after ``ScheduledRow.scored``.
        choices: one for the row's last token and each of its draft; none while it prefills.
    """

    scores: list[TokenLogprob]
    choices: list[Choice]


@dataclass(slots=True)
class Increment:
    """What a step adds to a request.

    Attributes:
        accepted: tokens of its draft that were right.
        finish_reason: why the request ends; None if it does not.
        error: what else there is to say of its end.
        embedding: the vector of a request for one, as bytes.
    """

    token_ids: list[int] = field(default_factory=list)
    checksums: list[tuple[int, int]] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str = ""
    accepted: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None
    embedding: bytes | None = None


def accepted(draft: Sequence[int], choices: Sequence[Choice]) -> int:
    """Return how many tokens of a draft are those that were chosen, up to the first that is not."""
    pairs = zip(draft, choices, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1].token, pairs))


def is_number(one: TokenLogprob) -> bool:
    """Return whether a log-probability is one: all of a row are NaN where a logit is NaN or +inf.

    -inf is: of a token that the model can never choose.
    """
    return not math.isnan(one.logprob)
