"""Reasoning that a model writes in front of its answer, between ``<think>`` and ``</think>``."""

from __future__ import annotations

from typing import Literal

from detinfer.server.api.openai.tools.pieces import Piece, held_back

BEGIN, END = "<think>", "</think>"


class Thoughts:
    """Tells reasoning from the answer; the marks belong to neither.

    Args:
        inside: whether a text that does not begin with the mark is reasoning.
    """

    def __init__(self, inside: bool) -> None:
        self._inside = inside
        self._begun = False
        self._text = ""  # not decided yet

    def push(self, text: str) -> list[Piece]:
        """Take more text; return what is certain by now."""
        self._text += text
        if not self._begun:
            rest = self._text.lstrip()
            if BEGIN.startswith(rest) and rest != BEGIN:
                return []
            if rest.startswith(BEGIN):
                self._inside, self._text = True, rest[len(BEGIN) :]
            self._begun = True
        pieces: list[Piece] = []
        if self._inside:
            at = self._text.find(END)
            stop = len(self._text) - held_back(self._text, END) if at < 0 else at
            self._give("reasoning", stop, pieces)
            if at < 0:
                return pieces
            self._inside, self._text = False, self._text[len(END) :]
        self._give("content", len(self._text), pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back, once nothing can follow."""
        pieces: list[Piece] = []
        self._give("reasoning" if self._inside else "content", len(self._text), pieces)
        return pieces

    def _give(self, kind: Literal["content", "reasoning"], stop: int, pieces: list[Piece]) -> None:
        if stop:
            pieces.append(Piece(kind, self._text[:stop]))
        self._text = self._text[stop:]


def begins_inside(name: str, prompt_end: str) -> bool:
    """Return whether an answer begins with reasoning though it has no mark.

    Args:
        name: of the parser: DeepSeek R1 always reasons, others where the prompt says so.
        prompt_end: the prompt's last characters.
    """
    end = prompt_end.rstrip()
    return end.endswith(BEGIN) or (name == "deepseek_r1" and not end.endswith(END))
