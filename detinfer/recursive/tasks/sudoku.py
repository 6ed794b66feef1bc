"""Sudoku of any box size: 4x4, 6x6, 9x9."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from detinfer.kernels.cpu import sudoku as search
from detinfer.recursive.tasks.symmetry import Boards, Stream, Symmetry, below, order
from detinfer.recursive.tasks.task import Puzzles, tokens_of

NODES = 200_000  # guesses after which a board is not counted any further: a second's work at most


@dataclass(frozen=True)
class Sudoku:
    """The rules of a board whose rows, columns and boxes hold every value once.

    Attributes:
        high, wide: sides of a box, in cells.
    """

    high: int
    wide: int

    @property
    def name(self) -> str:
        """Return what the task is called."""
        return f"sudoku{self.size}"

    @property
    def size(self) -> int:
        """Return the number of values, and of cells in a row."""
        return self.high * self.wide

    @property
    def width(self) -> int:
        """Return the number of cells in a row."""
        return self.size

    @property
    def cells(self) -> int:
        """Return the number of cells of a board."""
        return self.size * self.size

    @property
    def vocab(self) -> int:
        """Return the number of things a cell can hold, nothing among them."""
        return self.size + 1

    @property
    def units(self) -> npt.NDArray[np.int64]:
        """Cells of each row, then column, then box. [3, size, size]"""
        table: npt.NDArray[np.int64] = search.units(self.size, self.high, self.wide)
        return table.reshape(3, self.size, self.size)

    @property
    def hardness(self) -> tuple[float, ...]:
        """Return upper ends of classes of boards, by dead ends."""
        return 0, 2, 5, 10, np.inf

    def parse(self, text: str) -> Boards:
        """Read digits; ``.``, ``0`` or ``_`` where a cell is empty. [cells]"""
        letters = {str(value): value for value in range(self.size + 1)} | {".": 0, "_": 0}
        return tokens_of(text, letters, self.cells, f"1 to {self.size}, or . where it is empty")

    def render(self, board: Boards) -> str:
        """Write digits, ``.`` where a cell is empty."""
        return "".join(str(value) if value else "." for value in board)

    def clues(self, boards: Boards) -> npt.NDArray[np.bool_]:
        """Tell which cells are filled."""
        return np.asarray(boards != 0)

    def holds(self, boards: Boards, answers: Boards) -> npt.NDArray[np.bool_]:
        """Tell whether answers keep a board's clues and break no rule. [N, cells] -> [N]"""
        kept = (~self.clues(boards) | (boards == answers)).all(1)
        values = np.sort(answers[:, self.units.reshape(-1, self.size)], axis=-1)
        right = (values == np.arange(1, self.size + 1)).all((1, 2))
        return np.asarray(kept & right)

    def wrong(self, board: Boards, answer: Boards) -> npt.NDArray[np.bool_]:
        """Tell which cells have lost a clue, hold nothing, or what another of a unit holds."""
        wrong = (answer == 0) | (self.clues(board) & (board != answer))
        units = self.units.reshape(-1, self.size)
        values = answer[units]
        twice = np.count_nonzero(values[:, :, None] == values[:, None, :], axis=2) > 1
        wrong[units[twice]] = True
        return np.asarray(wrong)

    def clash(self, board: Boards) -> str | None:
        """Name two equal clues in one row, column or box, or nothing."""
        for kind, groups in zip(("row", "column", "box"), self.units, strict=True):
            for index, cells in enumerate(groups):
                values = board[cells]
                for value in range(1, self.size + 1):
                    if np.count_nonzero(values == value) > 1:
                        return f"{kind} {index + 1} has {value} more than once"
        return None

    def solutions(self, board: Boards, limit: int = 2) -> int:
        """Count a board's solutions up to a limit; -1 where it cannot be told soon."""
        scratch = np.empty(self.cells, np.int8)
        return int(search.solutions(board, self.size, self.high, self.wide, limit, NODES, scratch))

    def generate(self, seed: int, first: int, count: int) -> Puzzles:
        """Make minimal puzzles with one solution, the same for the same numbers anywhere.

        Their difficulty is the number of a search's dead ends, on average.
        """
        boards = np.empty((count, self.cells), np.int8)
        answers, dead_ends = np.empty_like(boards), np.empty(count, np.int64)
        search.generate(seed, first, self.size, self.high, self.wide, boards, answers, dead_ends)
        return Puzzles(boards, answers, dead_ends / search.RATINGS)

    def disguise(self, boards: Tensor, answers: Tensor, random: Generator) -> tuple[Tensor, Tensor]:
        """Return the same puzzles under symmetries drawn for each. [B, cells] int64"""
        count = len(boards)
        rows = self._lines(count, self.size // self.high, self.high, random)
        columns = self._lines(count, self.size // self.wide, self.wide, random)
        at = rows.unsqueeze(2) * self.size + columns.unsqueeze(1)
        if self.high == self.wide:
            turned = torch.rand(count, 1, 1, generator=random) < 0.5
            at = torch.where(turned, at.transpose(1, 2), at)
        at = at.flatten(1)
        values = torch.cat(
            [torch.zeros(count, 1, dtype=torch.int64), 1 + _orders(count, self.size, random)], 1
        )
        return values.gather(1, boards.gather(1, at)), values.gather(1, answers.gather(1, at))

    def symmetry(self, random: Stream) -> Symmetry:
        """Draw orders of bands, of rows and columns within them, of values; and a transposition."""
        rows, columns = self._order(random, self.high), self._order(random, self.wide)
        cells = rows[:, None] * self.size + columns
        if self.high == self.wide and below(random, 2):
            cells = cells.T
        values = np.append(0, 1 + order(random, self.size))
        return Symmetry(cells.ravel(), values.astype(np.int8))

    def _order(self, random: Stream, lines: int) -> npt.NDArray[np.int64]:
        """Rows or columns in another order that keeps those of a band together. [size]"""
        bands = order(random, self.size // lines)
        return np.concatenate([band * lines + order(random, lines) for band in bands])

    def essence(self, board: Boards) -> bytes:
        """Return the board itself: there are few essentially different small ones."""
        return board.tobytes()

    @staticmethod
    def _lines(count: int, bands: int, lines: int, random: Generator) -> Tensor:
        """Orders of rows or columns that keep those of a band together. [count, size]"""
        band = _orders(count, bands, random).unsqueeze(2)
        inside = _orders(count * bands, lines, random).view(count, bands, lines)
        return (band * lines + inside).flatten(1)


def _orders(count: int, items: int, random: Generator) -> Tensor:
    """Random orders of ``items`` things. [count, items]"""
    return torch.rand(count, items, generator=random).argsort(stable=True, dim=1)
