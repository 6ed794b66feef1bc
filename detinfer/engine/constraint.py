"""What a request's next tokens may be, by its grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from detinfer.engine.rules import failure_of
from detinfer.token_mask import TokenMask, allows

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Constraint:
    """A grammar, and how far a request's output has come in it.

    What it allows, and whether it meets one of its bounds, depends on the grammar, the request's
    own tokens and its own choices alone: it takes them one by one, asked about the choice before
    each and for a mask where that does not do, whatever was drafted. Guesses are followed in
    copies, which take its place as far as they were right.

    Args:
        matcher: at the beginning, nobody else's.
    """

    __slots__ = ("_ahead", "_matcher")

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._ahead: list[tuple[int, LLMatcher]] = []  # guesses, and where each leads

    def masks(self, draft: Sequence[int], chosen: Sequence[int | None]) -> list[TokenMask | None]:
        """Return what may come next, and after each token of a draft, where it has to be known.

        After a token that is not chosen, or that ends it, it has not.

        Args:
            chosen: at each of these places the token that is chosen if it may come: then there is
                no mask, which takes ten times as long as to ask. None where others have a say.
        """
        self._ahead = []
        at, masks = self._matcher, [_unless(self._matcher, chosen[0])]
        for token, before, after in zip(draft, chosen, chosen[1:], strict=False):
            if token != before if masks[-1] is None else not allows(masks[-1], token):
                break
            at = at.deep_copy()
            if not at.consume_token(token) or at.is_stopped():
                break
            self._ahead.append((token, at))
            masks.append(_unless(at, after))
        return [*masks, *[None] * (len(chosen) - len(masks))]

    def take(self, token: int) -> None:
        """Go on by a token of the output."""
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


def _unless(matcher: LLMatcher, token: int | None) -> TokenMask | None:
    if token is not None and matcher.validate_tokens([token]) == 1:
        return None
    return _mask(matcher)


def _mask(matcher: LLMatcher) -> TokenMask:
    mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    # One that fails would let the end be chosen.
    return np.zeros_like(mask) if matcher.is_error() else mask
