"""Drafts: guesses of a request's next tokens, verified many at a time.

A draft is verified in one forward pass whose rows give the bits of so many single steps, so it can
only save time (docs/determinism.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from detinfer.engine.constraint import Constraint

NGRAMS = (4, 3)  # tokens that must have occurred before; more of them are the better sign
FIRST, LONGEST = 5, 11  # tokens of a draft, if the step has room (``MAX_WITH_DRAFTS``)
PATIENCE = 32  # steps without drafts at most, after drafts that failed from their first token


class Drafts(Protocol):
    """The drafts of one request.

    Attributes:
        until: tokens of the request, prompt and output, that are all but sure: worth pages and
            rows of their own; 0 where all are guesses.
    """

    until: int

    def propose(self, token_ids: list[int], most: int) -> Sequence[int]:
        """Tokens that may follow ``token_ids``, at most ``most``."""

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn from a draft."""


class Replay:
    """The drafts of a request whose answer is known: all of it, until a token is another one.

    Args:
        prompt_tokens: where the answer begins.
        answer: what it is expected to be.
    """

    __slots__ = ("_answer", "_start", "until")

    def __init__(self, prompt_tokens: int, answer: Sequence[int]) -> None:
        self._start, self._answer = prompt_tokens, answer
        self.until = prompt_tokens + len(answer)

    def propose(self, token_ids: list[int], most: int) -> Sequence[int]:
        """Return the answer's next tokens."""
        done = len(token_ids) - self._start
        if len(token_ids) >= self.until or (done and self._answer[done - 1] != token_ids[-1]):
            self.until = 0
            return ()
        return self._answer[done : done + most]

    def judge(self, drafted: int, accepted: int) -> None:
        """Give up at the first token that is another one."""
        if accepted < drafted:
            self.until = 0


class PromptLookup:
    """Drafts by prompt lookup: what followed the last few tokens before may follow them again.

    After Saxena, "Prompt Lookup Decoding", 2023.
    """

    __slots__ = ("_ends", "_failures", "_indexed", "_length", "_pause")

    until = 0

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # where each n-gram last ended
        self._indexed = 0  # tokens seen
        self._length = FIRST
        self._pause = 0
        self._failures = 0

    def propose(self, token_ids: list[int], most: int) -> list[int]:
        """Tokens that may follow ``token_ids``, at most ``most``; often none."""
        end = len(token_ids)
        for stop in range(self._indexed + 1, end):
            for n in NGRAMS:
                if n <= stop:
                    self._ends[tuple(token_ids[stop - n : stop])] = stop
        self._indexed = max(self._indexed, end - 1)
        if self._pause:
            self._pause -= 1
            return []
        for n in NGRAMS:
            found = self._ends.get(tuple(token_ids[-n:]))
            if found is not None:
                return token_ids[found : found + min(self._length, most)]
        return []

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn from a draft: longer ones after success, a pause after failure."""
        self._length = LONGEST if accepted == drafted else FIRST
        if accepted:
            self._failures = 0
        else:
            self._failures += 1
            self._pause = min(2**self._failures, PATIENCE)


class Constrained:
    """The drafts of a request with a grammar: what has to come, or else what may.

    Args:
        constraint: how far its output has come.
        guesses: of what may.
    """

    __slots__ = ("_constraint", "_guessed", "_guesses", "until")

    def __init__(self, constraint: Constraint, guesses: Drafts) -> None:
        self._constraint, self._guesses, self._guessed = constraint, guesses, False
        self.until = guesses.until

    def propose(self, token_ids: list[int], most: int) -> Sequence[int]:
        """Return the forced tokens, if there are any, or those guesses that the grammar allows."""
        forced = self._constraint.forced()[:most]
        guesses = self._guesses.propose(token_ids, most)
        self._guessed = not forced
        return forced or (self._constraint.possible(guesses) if guesses else ())

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn from a draft that was a guess."""
        if self._guessed:
            self._guesses.judge(drafted, accepted)
