"""What a training does, number by number."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The settings of one training; with the seed they decide every weight.

    Attributes:
        steps: of the optimiser.
        batch: puzzles at once.
        rate: the learning rate of AdamW, once it is warm.
        matrix_rate: that of Muon, which trains the layers' matrices.
        warmup: steps until they are warm.
        hold: share of all steps after which rates fall to ``floor`` of themselves, linearly.
        floor: see there.
        decay: of weights, by both.
        average: of the weights' moving average, which is what is kept.
        most: supervision steps given to a puzzle before the next one takes its place.
        explore: share of puzzles that may not halt before a number of steps drawn for each.
        shown: up to this share of the answer is shown in half of the puzzles, so that there are
            easy ones among the minimal ones from the start.
        cycles: latent recursions of a step, if not the model's: fewer are cheaper and teach the
            first things as well.
        pool: puzzles that are generated; each comes back under another symmetry every time.
    """

    steps: int
    batch: int = 64
    rate: float = 1.5e-3
    matrix_rate: float = 0.01
    warmup: int = 200
    hold: float = 0.3
    floor: float = 0.02
    decay: float = 0.1
    average: float = 0.999
    most: int = 8
    explore: float = 0.1
    shown: float = 0.35
    cycles: int | None = None
    pool: int = 50_000

    def share_at(self, step: int) -> float:
        """Return the share of its learning rates that a step is given; the first step is 1."""
        left = (1 - step / self.steps) / (1 - self.hold)
        return min(1.0, step / self.warmup) * min(1.0, max(self.floor, left))

    def average_at(self, step: int) -> float:
        """Return how much of the moving average stays; early weights are forgotten sooner."""
        return min(self.average, (1 + step) / (10 + step))
