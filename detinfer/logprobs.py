"""The log-probability of a token, as the engine tells it."""

from __future__ import annotations

from typing import NamedTuple


class TokenLogprob(NamedTuple):
    """Log-probability of one output token, and of the likeliest tokens at its place.

    Attributes:
        top: (token id, log-probability), likeliest first, ties to the lowest id.
        rank: the token's place in that order, were it of the whole vocabulary; 1 is the likeliest.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    rank: int
