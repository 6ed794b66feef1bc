"""A board that is drawn in a terminal, and drawn again while it improves."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from detinfer.recursive.puzzle import parse_board
from detinfer.recursive.result import Solution, TraceStep
from detinfer.recursive.tasks import Boards, Task
from detinfer.recursive.tasks.sudoku import Sudoku

PAUSE, ALL_PAUSES = 0.08, 3.0  # seconds: a step takes less than an eye does


class Screen:
    """Where a board is drawn, over and over.

    Args:
        task: what it is a board of.
        board: as it was given. [cells]
        steps: most that there will be.
        console: the terminal; None is standard output.
    """

    def __init__(
        self, task: Task, board: Boards, steps: int, console: Console | None = None
    ) -> None:
        self._task, self._board, self._grid = task, board, board
        self._pause = min(PAUSE, ALL_PAUSES / steps)
        self._live = Live(
            drawn(task, board, board, board),
            console=console or Console(highlight=False),
            auto_refresh=False,
        )

    def __enter__(self) -> Screen:
        self._live.__enter__()
        self._live.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, traceback)

    def show(self, step: TraceStep) -> None:
        """Draw what a step gave, and leave it there for a moment."""
        line = f"step {step.step}, q {step.q:.3f}, {step.violations} cells wrong"
        self._draw(parse_board(self._task, step.grid), line)
        time.sleep(self._pause)

    def end(self, solution: Solution, line: str) -> None:
        """Draw the answer, and how it came."""
        self._grid = parse_board(self._task, solution.grid)
        self._draw(self._grid, line)

    def _draw(self, grid: Boards, line: str) -> None:
        board = drawn(self._task, self._board, self._grid, grid)
        self._live.update(Text("\n").join([board, Text(line, "dim")]), refresh=True)
        self._grid = grid


def drawn(task: Task, board: Boards, before: Boards, grid: Boards) -> Text:
    """Draw a grid: what was given bold, what has changed coloured, what is wrong red.

    Args:
        task: whose rules tell what is wrong.
        board: as it was given. [cells]
        before, grid: one step before, and now. [cells]
    """
    letters, text = task.render(grid), Text()
    given, wrong = task.clues(board), task.wrong(board, grid)
    empty = ~given & (grid == board)
    wide, high = (task.wide, task.high) if isinstance(task, Sudoku) else (task.width, task.cells)
    line = "┼".join(["─" * (2 * wide + 1)] * (task.width // wide))[1:-1]
    for cell, letter in enumerate(letters):
        row, column = divmod(cell, task.width)
        if column:
            text.append(" " if column % wide else " │ ", "dim")
        elif row:
            text.append("\n" if row % high else f"\n{line}\n", "dim")
        style = "dim" if empty[cell] else "bold" if given[cell] else "not bold"
        colour = "cyan" if grid[cell] != before[cell] else "default"
        text.append(letter, f"{style} {'red' if wrong[cell] and not empty[cell] else colour}")
    return text
