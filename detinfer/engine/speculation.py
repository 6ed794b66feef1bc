"""Drafts by prompt lookup: what followed the last few tokens before may follow them again.

A draft is verified in one forward pass whose rows give the bits of so many single steps, so it can
only save time (docs/determinism.md). After Saxena, "Prompt Lookup Decoding", 2023.
"""

from __future__ import annotations

NGRAMS = (4, 3)  # tokens that must have occurred before; more of them are the better sign
FIRST, LONGEST = 5, 11  # tokens of a draft, if the step has room (``MAX_WITH_DRAFTS``)
PATIENCE = 32  # steps without drafts at most, after drafts that failed from their first token


class PromptLookup:
    """The drafts of one request."""

    __slots__ = ("_ends", "_failures", "_indexed", "_length", "_pause")

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
