"""Models for tests of the solver engine: one whose steps are written down, one that is chaotic."""

from __future__ import annotations

import numpy as np

from detinfer.recursive.model import NotFiniteError
from detinfer.recursive.puzzle import Puzzle
from detinfer.recursive.tasks import TASKS


def puzzles(task: str, count: int, seed: int = 7) -> list[Puzzle]:
    """Puzzles with one solution."""
    made = TASKS[task].generate(seed, 0, count)
    return [Puzzle(TASKS[task], board, None) for board in made.boards]


def answer(puzzle: Puzzle) -> np.ndarray:
    """The solution of a puzzle of ``puzzles``, found by trying every value. [cells]"""
    board, task = puzzle.board.copy(), puzzle.task
    for cell in np.flatnonzero(board == 0):
        for value in range(1, task.width + 1):
            board[cell] = value
            if task.clash(board) is None and task.solutions(board) == 1:
                break
    return board


class ScriptedModel:
    """Gives each board the grids and q's that were written down for it, step by step.

    Args:
        task: of its boards.
        scripts: (grid, q) of each step, by the board's text; a q that is NaN fails the step.
    """

    def __init__(self, task: str, scripts: dict[str, list[tuple[np.ndarray, float]]]) -> None:
        self.name, self.system_fingerprint = f"scripted-{task}", "detinfer-test"
        self.task, self.scripts = TASKS[task], scripts
        self.parts = {"contract": "test-1", "weights": "none", "kernels": "scripted"}
        self.batches: list[int] = []

    def start(self, count):
        return tuple(np.zeros((count, 1, 1), np.float32) for _ in range(2))

    def step(self, boards, y, z):
        self.batches.append(len(boards))
        at = y[:, 0, 0].astype(int)
        rows = [
            self.scripts[self.task.render(board)][step]
            for board, step in zip(boards, at, strict=True)
        ]
        if wrong := [i for i, (_, q) in enumerate(rows) if np.isnan(q)]:
            raise NotFiniteError(wrong)
        y += 1
        return np.array([grid for grid, _ in rows]), np.array([q for _, q in rows], np.float32)


class ChaoticModel:
    """Element by element a chaotic map: the smallest difference of a bit grows within a few steps.

    Its rows are blind to one another. ``defect`` makes them see the batch.
    """

    def __init__(self, task: str, *, width: int = 8, defect: bool = False) -> None:
        self.task, self.width, self.defect = TASKS[task], width, defect
        self.parts = {"contract": "test-1", "weights": task, "kernels": "chaotic"}

    def start(self, count):
        shape = (count, self.task.cells, self.width)
        ramp = np.linspace(0.1, 0.9, self.task.cells * self.width, dtype=np.float32)
        y = np.ascontiguousarray(np.broadcast_to(ramp.reshape(shape[1:]), shape))
        return y, y[:, ::-1].copy()

    def step(self, boards, y, z):
        x = boards[:, :, None].astype(np.float32)
        if self.defect:
            x *= np.float32(1) + np.float32(2**-23) * len(boards)
        one, high, low = (np.float32(number) for number in (1, 3.9, 0.7))
        for _ in range(4):
            z[...] = (z + y + x) % one
            z[...] = high * z * (one - z)
            y[...] = (low * high * y * (one - y) + z) % one
        likeliest = y.argmax(2) % self.task.width + 1
        grids = np.where(boards > 0, boards, likeliest).astype(np.int8)
        return grids, y[:, 0, 0] - np.float32(0.5)
