"""What a request's next tokens may be, by its grammar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from detinfer.engine.rules import failure_of
from detinfer.machine import usable_cores
from detinfer.token_mask import TokenMask, allows

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher


class Constraint:
    """A grammar, and how far a request's output has come in it.

    What it allows, and whether it meets one of its bounds, depends on the grammar and the request's
    own tokens alone: it takes them one by one, a mask made before each, whatever was drafted.
    Guesses are followed in copies, which take its place as far as they were right.

    Args:
        matcher: at the beginning, nobody else's.
    """

    __slots__ = ("_ahead", "_matcher", "_next")

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._ahead: list[tuple[int, LLMatcher]] = []  # guesses, and where each leads
        self._next: TokenMask | None = None  # what may come next, if that is known already

    def masks(self, draft: Sequence[int]) -> list[TokenMask | None]:
        """Return what may come next, and after each token of a draft.

        After one that may not come, or that ends it, there is no telling: None.
        """
        self._ahead = []
        known, self._next = self._next, None
        at, masks = self._matcher, [_mask(self._matcher) if known is None else known]
        for token in draft:
            if not allows(masks[-1], token):
                break
            at = at.deep_copy()
            if not at.consume_token(token) or at.is_stopped():
                break
            self._ahead.append((token, at))
            masks.append(_mask(at))
        return [*masks, *[None] * (1 + len(draft) - len(masks))]

    def take(self, token: int) -> None:
        """Go on by a token of the output."""
        self._next = None
        if self._ahead and self._ahead[0][0] == token:
            self._matcher = self._ahead.pop(0)[1]
        else:
            self._ahead = []
            self._matcher.consume_token(token)

    def forced(self) -> list[int]:
        """Return the tokens, as the tokenizer has them, of the text that has to come next."""
        forced: list[int] = self._matcher.deep_copy().compute_ff_tokens()
        return forced

    def possible(self, draft: Sequence[int]) -> Sequence[int]:
        """Return a draft up to the first token that may not come."""
        return draft[: self._matcher.deep_copy().validate_tokens(list(draft))]

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def failure(self) -> str | None:
        """Why it can tell no more, in one line: a bound of its work was met."""
        return failure_of(self._matcher)


def make_next_masks(constraints: Sequence[Constraint], vocab: int) -> None:
    """Make the next masks of several requests at once, by all cores; ``masks`` finds them made."""
    if len(constraints) < 2:
        return
    filled = np.empty((len(constraints), -(-vocab // 32)), np.int32)
    matchers = [(constraint._matcher, place) for place, constraint in enumerate(constraints)]
    _executor().unsafe_compute_mask_ptr(matchers, filled.ctypes.data, filled[0].nbytes, len(filled))
    for constraint, mask in zip(constraints, filled.view(np.uint8), strict=True):
        # One that fails is told of, and what it lets follow found, by itself.
        constraint._next = None if constraint._matcher.is_error() else mask


@cache
def _executor() -> LLExecutor:
    from llguidance import LLExecutor

    return LLExecutor(usable_cores())


def _mask(matcher: LLMatcher) -> TokenMask:
    mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    # One that fails would let the end be chosen.
    return np.zeros_like(mask) if matcher.is_error() else mask
