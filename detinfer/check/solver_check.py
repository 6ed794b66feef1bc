"""Does a puzzle come out the same, bit for bit and at the same step, whatever else is solved?

Puzzles of the model, halting in every way there is, are solved alone and then under drawn loads:
of other sizes and orders, joining late, beside puzzles of another task and ones that are given up,
with more threads or fewer.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from detinfer.check.draw import each_alone, sizes, take_targets
from detinfer.check.families import BATCH, FAMILIES, NEIGHBOURS, Family, only
from detinfer.check.load import Load, PuzzleRow, SolverPlacement
from detinfer.check.runner import Check, Mode
from detinfer.check.target import Bounds, Target, solving
from detinfer.recursive.params import SolveParams

if TYPE_CHECKING:  # it loads torch
    from detinfer.recursive.tasks import Task

_PUZZLES = 3  # seed of the generator: neither a training's nor its tests'
_SOME = 64  # puzzles that a check's own are the easiest and the hardest of
# What may go wrong alone: halting at the first good q, never, by rest; disguises, noise; the rules.
_ASKED = {
    "easy": SolveParams(),
    "hard": SolveParams(),
    "hardest": SolveParams(),
    "q": SolveParams(halt="q"),
    "fixed": SolveParams(halt="fixed"),
    "stable": SolveParams(halt="stable", stable_steps=3),
    "rollouts": SolveParams(max_steps=8, rollouts=3, seed=7),
    "noise": SolveParams(max_steps=8, rollouts=3, noise=0.3, seed=7),
}
_COSTLY = 0.25  # share of the runs of what takes several times as long


def puzzle_targets(boards: Sequence[str], hardness: Sequence[float]) -> list[Target]:
    """Return puzzles to check: one of the easiest, the others of the hardest.

    Args:
        boards: one of each difficulty at least.
        hardness: of each.
    """
    order = sorted(range(len(boards)), key=lambda at: (hardness[at], at))
    places = [order[0], *order[::-1]]
    return [
        Target(boards[at], params, name, _COSTLY if params.rollouts > 1 else 1.0)
        for at, (name, params) in zip(places, _ASKED.items(), strict=False)
    ]


def made_targets(task: Task) -> list[Target]:
    """Return puzzles of a task to check."""
    made = task.generate(_PUZZLES, 0, _SOME)
    return puzzle_targets([task.render(one) for one in made.boards], made.difficulty.tolist())


def one_puzzle(task: Task) -> str:
    """Return a puzzle that nobody compares."""
    return task.render(task.generate(_PUZZLES, 0, 1).boards[0])


def given_targets(boards: Sequence[str]) -> list[Target]:
    """Return puzzles of a user's own, halting as they do by default."""
    return [Target(board, SolveParams()) for board in boards]


class SolverCheck(Check):
    """A ``Check`` whose targets are puzzles."""

    noun = "puzzle"

    def _check_target(self, number: int, target: Target) -> None:
        pass  # a puzzle's seed is never drawn

    def _loads(self, mode: Mode) -> Iterator[Load]:
        return draw_puzzle_loads(
            self.targets,
            self.runs,
            self.subject.bounds,
            self.seed,
            mode == "deterministic",
            self.families,
        )

    def single(self, mode: Mode, index: int) -> tuple[Target, Load]:
        """See ``Check.single``."""
        target = self.targets[index]
        row = PuzzleRow(target.prompt, target.params, index)
        ours = None if self.subject.bounds.max_num_seqs is None else 1
        return target, Load(0, (row,), SolverPlacement(mode == "deterministic", ours, ours))


def draw_puzzle_loads(
    targets: Sequence[Target],
    runs: int,
    bounds: Bounds,
    seed: int,
    deterministic: bool,
    families: Sequence[Family] = FAMILIES,
) -> Iterator[Load]:
    """Draw loads until every target ran its share of ``runs`` times.

    At least half of each load's rows are runs of targets. Load k is a function of the arguments
    alone, and in both modes the same but for the mode.

    Args:
        targets: puzzles.
        runs: of each.
        bounds: ``max_num_seqs`` is the most threads, None where neither they nor the slots of a
            step are ours; ``max_rows`` the most puzzles of a load.
        seed: what is drawn from.
        deterministic: whether by the contract's kernels.
        families: what loads may change.
    """
    left = [target.runs_of(runs) for target in targets]
    numbers = itertools.count(1)
    for turn in [left] if NEIGHBOURS in families else each_alone(left):
        for load in _draw(targets, turn, bounds, seed, deterministic, families, numbers):
            yield only(load, bounds, families)


def _draw(
    targets: Sequence[Target],
    left: list[int],
    bounds: Bounds,
    seed: int,
    deterministic: bool,
    families: Sequence[Family],
    numbers: Iterator[int],
) -> Iterator[Load]:
    cheap = [target.share >= 1 for target in targets]
    for size in sizes(seed, bounds.max_rows if BATCH in families else 1):
        if not any(left):
            return
        number = next(numbers)
        rng = random.Random(f"detinfer check solver {seed} load {number}")
        most = rng.randint(-(-size // 2), size)
        chosen = take_targets(rng, left, cheap, most, number % 4 == 1)
        spread = rng.choice((0, 0, 2, 8))
        rows = [
            PuzzleRow(targets[index].prompt, targets[index].params, index, rng.randint(0, spread))
            for index in chosen
        ]
        for _ in range(min(size - len(chosen), len(chosen))):
            rows.append(_neighbour(rng, targets, spread, bounds.other_models))
        rng.shuffle(rows)
        rows.sort(key=lambda row: row.arrival)
        slots = len(rows) if rng.random() < 0.5 else rng.randint(1, len(rows))
        threads = rng.randint(1, bounds.max_num_seqs or 1)
        placement = SolverPlacement(deterministic, slots, threads)
        if bounds.max_num_seqs is None:
            placement = SolverPlacement(deterministic)
        yield Load(number, tuple(rows), placement)


def _neighbour(
    rng: random.Random, targets: Sequence[Target], spread: int, strangers: bool
) -> PuzzleRow:
    """Return a puzzle nobody compares: a target's with other wishes, or another task's."""
    index = rng.randrange(len(targets))
    params = solving(targets[index].params)
    params = replace(params, max_steps=rng.randint(1, 16), seed=rng.getrandbits(32))
    aborted = rng.random() < 0.25
    return PuzzleRow(
        targets[index].prompt,
        params,
        arrival=rng.randint(0, spread),
        abort_after=rng.randint(0, 6) if aborted else None,
        repeats=index,
        stranger=rng.random() < 0.5 and strangers,
    )
