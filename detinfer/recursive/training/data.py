"""Puzzles to train on: a pool of generated ones, in another disguise each time one is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from detinfer.recursive.tasks.task import Puzzles, Task

TRAIN, TEST = 1, 2  # seeds of the generators: of a pool, and of the puzzles nobody trains on


@dataclass(frozen=True)
class Pool:
    """Generated puzzles, none of which is a test's.

    Attributes:
        task: whose they are.
        boards, answers: [N, cells] int64
        shown: see recipe.Recipe.
    """

    task: Task
    boards: Tensor
    answers: Tensor
    shown: float

    @classmethod
    def make(cls, task: Task, count: int, shown: float, tests: Puzzles) -> Pool:
        """Generate ``count`` puzzles and leave out those that ``tests`` has too."""
        puzzles = task.generate(TRAIN, 0, count)
        known = {task.essence(board) for board in tests.boards}
        new = np.array([task.essence(board) not in known for board in puzzles.boards])
        boards, answers = (torch.from_numpy(one[new]).long() for one in puzzles[:2])
        return cls(task, boards, answers, shown)

    def draw(self, count: int, random: Generator) -> tuple[Tensor, Tensor]:
        """Boards and answers. [count, cells] int64 each"""
        chosen = torch.randint(len(self.boards), (count,), generator=random)
        boards, answers = self.task.disguise(self.boards[chosen], self.answers[chosen], random)
        share = (2 * torch.rand(count, 1, generator=random) - 1) * self.shown
        seen = torch.rand(boards.shape, generator=random) < share
        return torch.where(seen, answers, boards), answers
