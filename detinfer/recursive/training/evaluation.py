"""How many puzzles a model solves, by the number of steps it is given."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from detinfer.recursive.network import Network
from detinfer.recursive.tasks.task import Puzzles, Task

BATCH = 256


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


@torch.inference_mode()
def evaluate(network: Network, task: Task, puzzles: Puzzles, steps: int = 16) -> Evaluation:
    """Solve every puzzle with ``steps`` steps."""
    right = np.zeros((steps, len(puzzles.boards)), np.bool_)
    halts = np.zeros_like(right)
    for first in range(0, len(puzzles.boards), BATCH):
        part = slice(first, first + BATCH)
        boards = torch.from_numpy(puzzles.boards[part]).long()
        x, (y, z) = network.embed(boards), network.start(len(boards))
        for step in range(steps):
            for _ in range(network.config.cycles):
                y, z = network.recursion(x, y, z)
            logits, verdict = network.heads(y)
            answers = logits.argmax(-1).to(torch.int8).numpy()
            right[step, part] = (answers == puzzles.answers[part]).all(1)
            holds = task.holds(puzzles.boards[part], answers)
            halts[step, part] = holds & (verdict > 0).numpy()
    halts[-1] = True
    halted = halts.argmax(0)
    classes = np.searchsorted(task.hardness, puzzles.difficulty)
    return Evaluation(
        right.mean(1).tolist(),
        [float(right[-1][classes == one].mean()) for one in np.unique(classes)],
        float(right[halted, np.arange(right.shape[1])].mean()),
        float(halted.mean()) + 1,
    )
