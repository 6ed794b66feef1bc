"""How many puzzles a model solves, by the number of steps it is given."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.tasks.task import Puzzles

BATCH = 64


class Evaluation(NamedTuple):
    """Shares of puzzles solved exactly.

    Attributes:
        by_steps: after each number of steps.
        by_hardness: after all of them, by class of difficulty (Task.hardness), if it has any.
        verified: when a puzzle halts as soon as the model says so and the rules hold.
        halting_step: at which it then does, on average.
    """

    by_steps: list[float]
    by_hardness: list[float]
    verified: float
    halting_step: float


def evaluate(model: RecursiveModel, puzzles: Puzzles, steps: int = 16) -> Evaluation:
    """Solve every puzzle with ``steps`` steps, by the kernels that will serve the model."""
    task = model.task
    right = np.zeros((steps, len(puzzles.boards)), np.bool_)
    halts = np.zeros_like(right)
    for first in range(0, len(puzzles.boards), BATCH):
        part = slice(first, first + BATCH)
        boards = puzzles.boards[part]
        y, z = (state.copy() for state in model.start(len(boards)))
        for step in range(steps):
            answers, verdict = model.step(boards, y, z)
            right[step, part] = (answers == puzzles.answers[part]).all(1)
            halts[step, part] = task.holds(boards, answers) & (verdict > 0)
    halts[-1] = True
    halted = halts.argmax(0)
    classes = np.searchsorted(task.hardness, puzzles.difficulty)
    return Evaluation(
        right.mean(1).tolist(),
        [float(right[-1][classes == one].mean()) for one in np.unique(classes)],
        float(right[halted, np.arange(right.shape[1])].mean()),
        float(halted.mean()) + 1,
    )
