"""A puzzle as it was read: its board, and what is known of it before a model has seen it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detinfer.errors import RequestError
from detinfer.recursive.tasks import Boards, Task

# What people draw between cells; never where a task has such a cell.
_LINES = str.maketrans("", "", " \t|-+")


@dataclass(frozen=True, eq=False)
class Puzzle:
    """A board with one solution, as far as a bounded search can tell, or with none.

    Attributes:
        task: what its rules are.
        board: token ids. [cells] int8
        unsolvable: why it has no solution; None where it may have one.
    """

    task: Task
    board: Boards
    unsolvable: str | None

    @property
    def text(self) -> str:
        """Return the board, a character a cell."""
        return self.task.render(self.board)


def read_puzzle(task: Task, text: str) -> Puzzle:
    """Read a board and look for its solutions: a second's search at most, mostly 0.1 ms.

    Args:
        task: what it is a board of.
        text: its cells row by row; line breaks, spaces and drawn lines between them are left out.

    Raises:
        RequestError: it is no board of the task, has no clue, or more than one solution.
    """
    board = parse_board(task, text)
    if not task.clues(board).any():
        raise RequestError("grid: got no clue at all, expected a board with one solution", "grid")
    unsolvable = task.clash(board)
    if unsolvable is None:
        solutions = task.solutions(board)
        if solutions > 1:
            clues = np.count_nonzero(task.clues(board))
            raise RequestError(
                f"grid: got a board with more than one solution ({clues} clues), expected one",
                "grid",
            )
        unsolvable = "the board has no solution" if solutions == 0 else None
    return Puzzle(task, board, unsolvable)


def parse_board(task: Task, text: str) -> Boards:
    """Read a board, with or without what people draw between its cells. [cells]

    Raises:
        RequestError: it is none of the task.
    """
    if not isinstance(text, str):
        raise RequestError(f"grid: got {type(text).__name__}, expected a string", "grid")
    try:
        return task.parse(text)
    except RequestError:
        return task.parse(text.translate(_LINES))
