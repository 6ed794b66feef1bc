"""What every kind of puzzle offers: a model is trained, served and judged over this alone."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Generator, Tensor

from detinfer.errors import RequestError
from detinfer.recursive.tasks.symmetry import Boards, Stream, Symmetry


class Puzzles(NamedTuple):
    """Puzzles with one answer each.

    Attributes:
        boards, answers: token ids. [N, cells] int8
        difficulty: what is hard about them, in the task's own measure. [N] float64
    """

    boards: Boards
    answers: Boards
    difficulty: npt.NDArray[np.float64]


class Task(Protocol):
    """A kind of puzzle: how one is written, what its rules are, where new ones come from."""

    @property
    def name(self) -> str:
        """Return what the task is called."""

    @property
    def cells(self) -> int:
        """Return the number of cells of a board."""

    @property
    def width(self) -> int:
        """Return the number of cells in a row."""

    @property
    def vocab(self) -> int:
        """Return the number of things a cell can hold: token ids are below it."""

    @property
    def units(self) -> npt.NDArray[np.int64]:
        """Cells of each unit, by kind; every cell is in one of each kind. [kinds, n, size]"""

    @property
    def hardness(self) -> tuple[float, ...]:
        """Upper ends of the classes that accuracy is told by; see Puzzles.difficulty."""

    def parse(self, text: str) -> Boards:
        """Read a board, with or without line breaks. [cells]

        Raises:
            RequestError: a character that means nothing, or too few or too many.
        """

    def render(self, board: Boards) -> str:
        """Write a board as ``parse`` reads it, a character a cell, without line breaks."""

    def clues(self, boards: Boards) -> npt.NDArray[np.bool_]:
        """Tell which cells an answer must leave as they are. Any shape"""

    def holds(self, boards: Boards, answers: Boards) -> npt.NDArray[np.bool_]:
        """Tell whether answers keep their board's clues and break no rule. [N, cells] -> [N]"""

    def wrong(self, board: Boards, answer: Boards) -> npt.NDArray[np.bool_]:
        """Tell which cells show that an answer is wrong; none does where it holds. [cells]"""

    def clash(self, board: Boards) -> str | None:
        """Name what alone makes a board no puzzle of this kind, or nothing. [cells]"""

    def solutions(self, board: Boards, limit: int = 2) -> int:
        """Count a board's answers up to a limit; -1 where it cannot be told soon. [cells]"""

    def generate(self, seed: int, first: int, count: int) -> Puzzles:
        """Make puzzles number ``first`` and those after it, the same anywhere."""

    def disguise(self, boards: Tensor, answers: Tensor, random: Generator) -> tuple[Tensor, Tensor]:
        """Return the same puzzles under symmetries drawn for each. [B, cells] int64"""

    def symmetry(self, random: Stream) -> Symmetry:
        """Draw a disguise for one puzzle: rule 9b of the arithmetic contract."""

    def essence(self, board: Boards) -> bytes:
        """Return what a board has in common with its likenesses, to keep tests from pools."""


def tokens_of(text: str, letters: dict[str, int], cells: int, what: str) -> Boards:
    """Look up a board's characters, line breaks left out.

    Args:
        text: one character a cell.
        letters: token ids by character.
        cells: how many there must be.
        what: characters that are expected, for the message.

    Raises:
        RequestError: a character that is none of them, or too few or too many.
    """
    line = "".join(text.splitlines())
    for at, letter in enumerate(line):
        if letter not in letters:
            raise RequestError(f"grid: cell {at + 1} is {letter!r}, expected {what}", "grid")
    if len(line) != cells:
        raise RequestError(f"grid: has {len(line)} cells, expected {cells}", "grid")
    return np.array([letters[letter] for letter in line], np.int8)
