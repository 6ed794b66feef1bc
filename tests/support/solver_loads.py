"""Puzzles solved alone, and among others under drawn loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from detinfer.recursive.lane import Model
from detinfer.recursive.params import SolveParams
from detinfer.recursive.puzzle import Puzzle
from detinfer.recursive.result import Solution
from detinfer.recursive.solver_engine import SolverEngine

Models = Mapping[str, Model]
Case = tuple[str, Puzzle, SolveParams]


def run(engine: SolverEngine) -> dict[str, Solution]:
    """Step until nothing is left: solutions by name."""
    found = {}
    while engine.has_work:
        for update in engine.step():
            if update.solution is not None:
                assert update.name not in found
                found[update.name] = update.solution
    assert engine.running == engine.waiting == 0
    return found


def alone(models: Models, cases: Sequence[Case]) -> list[Solution]:
    """Each puzzle's solution in an engine of one slot."""
    solutions = []
    for model, puzzle, params in cases:
        engine = SolverEngine({model: models[model]}, max_batch=1)
        engine.add("a", model, puzzle, params)
        solutions.append(run(engine)["a"])
    return solutions


def together(models: Models, cases: Sequence[Case], seed: int, most: int = 4) -> list[Solution]:
    """The same under a drawn load: order, times of joining, slots, strangers that are given up.

    Args:
        most: fewer than these join between two steps.
    """
    rng = np.random.default_rng(seed)
    engine = SolverEngine(models, max_batch=int(rng.integers(1, 2 * most + 1)))
    left, found, strangers = rng.permutation(len(cases)).tolist(), {}, 0
    while left or engine.has_work:
        for at in left[: rng.integers(0, most)]:
            engine.add(f"case {at}", *cases[at])
            left.remove(at)
        if left and rng.random() < 0.5:
            model, puzzle, params = cases[rng.integers(len(cases))]
            engine.add(f"stranger {strangers}", model, puzzle, replace(params, seed=99))
            strangers += 1
        if strangers and rng.random() < 0.4:
            engine.abort(f"stranger {rng.integers(strangers)}")
        for update in engine.step():
            if update.solution is not None:
                found[update.name] = update.solution
    return [found[f"case {at}"] for at in range(len(cases))]
