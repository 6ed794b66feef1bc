"""A puzzle in another disguise: the same rules hold, and its answer is the answer's disguise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detinfer.kernels.cpu.stream import draw, shuffle

Boards = npt.NDArray[np.int8]
Stream = npt.NDArray[np.uint64]


class Symmetry(NamedTuple):
    """One way to write a kind of puzzle anew.

    Attributes:
        cells: cell i shows what cell ``cells[i]`` showed. [cells] int64
        tokens: what each token id is written as. [vocab] int8
    """

    cells: npt.NDArray[np.int64]
    tokens: Boards

    def disguised(self, board: Boards) -> Boards:
        """Write a board or an answer anew. [cells]"""
        return np.asarray(self.tokens[board[self.cells]])

    def undone(self, board: Boards) -> Boards:
        """Return what was disguised as ``board``. [cells]"""
        found = np.empty_like(board)
        found[self.cells] = np.argsort(self.tokens).astype(np.int8)[board]
        return found


def below(random: Stream, end: int) -> int:
    """Draw an integer of [0, end)."""
    return int(draw(random, end))


def order(random: Stream, count: int) -> npt.NDArray[np.int64]:
    """Draw an order of ``count`` things. [count]"""
    items = np.arange(count)
    shuffle(random, items)
    return items
