"""What a server counts of the puzzles it was asked to solve."""

from __future__ import annotations

from collections import Counter

from detinfer.recursive.result import Solution
from detinfer.server.metrics.histogram import Histogram

STATUSES = ("solved", "unsolved", "unsolvable", "abort", "error")
HALTS = ("fixed", "q", "verified", "stable", "max_steps")
_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024)


class Solving:
    """Puzzles that have ended.

    Attributes:
        ended: by status; ``abort``: whoever asked went away.
        halted: by what ended the run that was chosen.
        steps: of that run.
    """

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.halted: Counter[str] = Counter()
        self.steps = Histogram(
            "solve_steps", "Supervision steps of the run that an answer is from.", _STEPS
        )

    def add(self, solution: Solution) -> None:
        """Count an answer."""
        self.ended[solution.status] += 1
        if solution.halted_by is not None:
            self.halted[solution.halted_by] += 1
            self.steps.observe(solution.steps)
