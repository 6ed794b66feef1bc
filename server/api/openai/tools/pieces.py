"""What a text is read into: pieces of content, of reasoning and of calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol


class Piece(NamedTuple):
    """A piece of an answer.

    Attributes:
        kind: content, reasoning, call (the text is the function's name) or arguments (of the call
            that came last).
    """

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str


class Stage(Protocol):
    """Reads a text that comes bit by bit; what it gives does not depend on where it was cut."""

    def push(self, text: str) -> list[Piece]:
        """Take more text; return what is certain by now."""

    def finish(self) -> list[Piece]:
        """Return what was held back, once nothing can follow."""


class Reader:
    """Reads a text in stages: what one takes for content is read by the next."""

    def __init__(self, stages: Sequence[Stage] = ()) -> None:
        self._stages = stages

    def push(self, text: str) -> list[Piece]:
        """Take more text; return what is certain by now."""
        return self._read([Piece("content", text)] if text else [], self._stages)

    def finish(self) -> list[Piece]:
        """Return what was held back, once nothing can follow."""
        pieces: list[Piece] = []
        for place, stage in enumerate(self._stages):
            pieces += self._read(stage.finish(), self._stages[place + 1 :])
        return pieces

    def _read(self, pieces: Iterable[Piece], stages: Sequence[Stage]) -> list[Piece]:
        for stage in stages:
            pieces = [
                new
                for piece in pieces
                for new in (stage.push(piece.text) if piece.kind == "content" else [piece])
            ]
        return list(pieces)


def held_back(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark."""
    most = min(len(text), len(mark) - 1)
    return next((size for size in range(most, 0, -1) if mark.startswith(text[-size:])), 0)
