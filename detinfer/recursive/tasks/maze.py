"""Mazes with one shortest path from start to goal, which the answer marks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from detinfer.kernels.cpu import maze as search
from detinfer.recursive.tasks.symmetry import Boards, Stream, Symmetry, below
from detinfer.recursive.tasks.task import Puzzles, tokens_of

LETTERS = "#.SGo"  # by token id; an open cell may be written as a space, too
TURNS = 8  # symmetries of a square


@dataclass(frozen=True)
class Maze:
    """The rules of a square of cells whose border is wall.

    Attributes:
        width: of the square, its border included; even, so that neighbours can be paired.
        least: steps of the path in generated ones.
    """

    width: int
    least: int

    @property
    def name(self) -> str:
        """Return what the task is called."""
        return "maze"

    @property
    def cells(self) -> int:
        """Return the number of cells of a board."""
        return self.width * self.width

    @property
    def vocab(self) -> int:
        """Return the number of things a cell can hold."""
        return len(LETTERS)

    @property
    def units(self) -> npt.NDArray[np.int64]:
        """Pairs of neighbours, so that a cell hears one neighbour in each kind. [4, n, 2]

        Left and right, from the first column and from the second, then up and down. Pairs over
        the edge are of walls.
        """
        grid = np.arange(self.cells).reshape(self.width, self.width)
        kinds = [np.roll(lines, -shift, 1) for lines in (grid, grid.T) for shift in (0, 1)]
        return np.stack([kind.reshape(-1, 2) for kind in kinds])

    @property
    def hardness(self) -> tuple[float, ...]:
        """Return upper ends of classes of boards, by steps and ways to leave the path."""
        return 20, 25, 30, 35, np.inf

    def parse(self, text: str) -> Boards:
        """Read rows of ``#``, ``.`` or space, ``S`` and ``G``; ``o`` on the path. [cells]"""
        letters = {letter: token for token, letter in enumerate(LETTERS)} | {" ": search.OPEN}
        return tokens_of(text, letters, self.cells, "# for a wall, . or a space, S, G, or o")

    def render(self, board: Boards) -> str:
        """Write ``#``, ``.``, ``S``, ``G`` and ``o``."""
        return "".join(LETTERS[token] for token in board)

    def clues(self, boards: Boards) -> npt.NDArray[np.bool_]:
        """Tell which cells are not open: the path may lead through the others alone."""
        return np.asarray(boards != search.OPEN)

    def holds(self, boards: Boards, answers: Boards) -> npt.NDArray[np.bool_]:
        """Tell whether answers mark one shortest path, and nothing else. [N, cells] -> [N]"""
        right = np.empty(len(boards), np.bool_)
        search.holds(boards, answers, self.width, right)
        return right

    def wrong(self, board: Boards, answer: Boards) -> npt.NDArray[np.bool_]:
        """Tell which cells have lost a clue, or are marked and no link of a path.

        A path that is too long shows in none of its cells.
        """
        marked = (answer == search.PATH) & (board == search.OPEN)
        ends = (board == search.START) | (board == search.GOAL)
        on = np.pad((marked | ends).reshape(self.width, self.width), 1).astype(np.int64)
        near = on[:-2, 1:-1] + on[2:, 1:-1] + on[1:-1, :-2] + on[1:-1, 2:]
        links = near.ravel() != np.where(ends, 1, 2)
        return np.asarray((board != answer) & ~marked | (marked | ends) & links)

    def clash(self, board: Boards) -> str | None:
        """Name a missing or second start or goal, a gap in the border, or a path already there."""
        for token, what in ((search.START, "start (S)"), (search.GOAL, "goal (G)")):
            count = np.count_nonzero(board == token)
            if count != 1:
                return f"{count or 'no'} {what}, expected one"
        border = np.ones((self.width, self.width), np.bool_)
        border[1:-1, 1:-1] = False
        gaps = np.flatnonzero(border.ravel() & (board != search.WALL))
        if len(gaps):
            return f"{self._place(gaps[0])} is at the border and no wall"
        marks = np.flatnonzero(board == search.PATH)
        return f"{self._place(marks[0])} is marked already" if len(marks) else None

    def _place(self, cell: int) -> str:
        return f"row {cell // self.width + 1}, column {cell % self.width + 1}"

    def solutions(self, board: Boards, limit: int = 2) -> int:
        """Count the shortest paths from start to goal, up to a limit; 0 where none leads there."""
        return int(search.paths(board, self.width, limit))

    def generate(self, seed: int, first: int, count: int) -> Puzzles:
        """Make mazes with one shortest path, the same for the same numbers anywhere.

        They are random trees from which some walls were taken. Their difficulty is the number of
        the path's steps and of the ways to leave it.
        """
        boards = np.empty((count, self.cells), np.int8)
        answers, difficulty = np.empty_like(boards), np.empty(count, np.int64)
        search.generate(seed, first, self.width, self.least, boards, answers, difficulty)
        return Puzzles(boards, answers, difficulty.astype(np.float64))

    def disguise(self, boards: Tensor, answers: Tensor, random: Generator) -> tuple[Tensor, Tensor]:
        """Return the same mazes, each turned and mirrored as drawn. [B, cells] int64"""
        turns = torch.from_numpy(_turns(self.width))
        at = turns[torch.randint(TURNS, (len(boards),), generator=random)]
        return boards.gather(1, at), answers.gather(1, at)

    def symmetry(self, random: Stream) -> Symmetry:
        """Draw a turn or a reflection, any but the one that changes nothing."""
        turn = 1 + below(random, TURNS - 1)
        return Symmetry(_turns(self.width)[turn], np.arange(self.vocab, dtype=np.int8))

    def essence(self, board: Boards) -> bytes:
        """Return the least of a board's eight symmetric forms."""
        forms = board[_turns(self.width)]
        return min(bytes(form.tobytes()) for form in forms)


@lru_cache
def _turns(width: int) -> npt.NDArray[np.int64]:
    """Orders of cells, one a symmetry of the square. [8, cells]"""
    grid = np.arange(width * width).reshape(width, width)
    return np.stack([np.rot90(side, turn).ravel() for side in (grid, grid.T) for turn in range(4)])
