"""When a run ends, and what its answer says: on models whose steps are written down."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_solvers import ScriptedModel, answer, puzzles

from detinfer.recursive.params import SolveParams
from detinfer.recursive.solver_engine import SolverEngine

[PUZZLE] = puzzles("sudoku4", 1)
RIGHT = answer(PUZZLE)
CLUE = int(np.flatnonzero(PUZZLE.board)[0])
EMPTY = int(np.flatnonzero(PUZZLE.board == 0)[0])


def changed(cell):
    grid = RIGHT.copy()
    grid[cell] = grid[cell] % 4 + 1
    return grid


WRONG, BROKEN = changed(EMPTY), changed(CLUE)
# Another board's answer: no rule broken, but clues lost.
OTHER = (RIGHT % 4 + 1).astype(np.int8)
NAN, BELOW = float("nan"), float(np.nextafter(np.float32(0), np.float32(-1)))


def solve(*steps, puzzle=PUZZLE, **params):
    model = ScriptedModel("sudoku4", {puzzle.text: list(steps)})
    engine = SolverEngine({"m": model})
    engine.add("a", "m", puzzle, SolveParams(max_steps=len(steps), trace=True, **params))
    updates = []
    while engine.has_work:
        updates += engine.step()
    assert [update.name for update in updates] == ["a"] * len(updates)
    solution = updates[-1].solution
    assert [step for update in updates for step in update.steps] == solution.trace
    assert all(update.solution is None for update in updates[:-1])
    assert engine.running == engine.waiting == 0
    return solution


@pytest.mark.parametrize(
    ("halt", "script", "steps", "halted_by", "status"),
    [
        ("fixed", [(RIGHT, 9), (RIGHT, 9), (WRONG, 9)], 3, "fixed", "unsolved"),
        ("fixed", [(WRONG, -1), (RIGHT, -1)], 2, "fixed", "solved"),
        ("q", [(WRONG, 0), (WRONG, BELOW), (WRONG, 1e-45), (RIGHT, 1)], 3, "q", "unsolved"),
        ("q", [(RIGHT, -1), (RIGHT, 0)], 2, "max_steps", "solved"),
        ("verified", [(WRONG, 5), (RIGHT, 0), (BROKEN, 5), (RIGHT, 5)], 4, "verified", "solved"),
        ("verified", [(OTHER, 5), (WRONG, 5)], 2, "max_steps", "unsolved"),
        ("verified", [(RIGHT, 1), (WRONG, 1)], 1, "verified", "solved"),
        ("stable", [(WRONG, 9), (RIGHT, -9), (WRONG, 0), (WRONG, 0)], 4, "stable", "unsolved"),
        ("stable", [(RIGHT, 0), (RIGHT, 0), (WRONG, 0)], 2, "stable", "solved"),
        ("stable", [(RIGHT, 0), (WRONG, 0)], 2, "max_steps", "unsolved"),
    ],
)
def test_a_run_ends_by_its_rule(halt, script, steps, halted_by, status):
    solution = solve(*script, halt=halt)
    assert (solution.steps, solution.halted_by) == (steps, halted_by)
    assert solution.status == status
    assert (solution.reason is None) == (status == "solved")
    grid, q = script[steps - 1]
    assert solution.grid == PUZZLE.task.render(grid)
    assert solution.q == np.float32(q)
    assert solution.q_hex == f"{np.float32(q).view(np.uint32):08x}"


def test_three_equal_grids_are_more_than_two():
    script = [(WRONG, 0), (WRONG, 0), (RIGHT, 0), (RIGHT, 0), (RIGHT, 0), (WRONG, 0)]
    assert solve(*script, halt="stable", stable_steps=3).steps == 5
    # A board that needs no change is not yet a grid that stayed.
    whole = PUZZLE.__class__(PUZZLE.task, RIGHT, None)
    assert solve((RIGHT, 0), (RIGHT, 0), (RIGHT, 0), puzzle=whole, halt="stable").steps == 2


@pytest.mark.parametrize("halt", ["q", "verified"])
def test_a_threshold_must_be_passed(halt):
    script = [(RIGHT, 1.5), (RIGHT, 1.5000001), (RIGHT, 9)]
    assert solve(*script, halt=halt, halt_threshold=1.5).steps == 2
    assert solve(*script, halt=halt, halt_threshold=-1.5).steps == 1


@pytest.mark.parametrize(
    ("grid", "valid", "kept"),
    [(RIGHT, True, True), (WRONG, False, True), (BROKEN, False, False), (OTHER, True, False)],
)
def test_what_is_wrong_is_told_and_nothing_repaired(grid, valid, kept):
    solution = solve((grid, 1))
    assert (solution.valid, solution.clues_kept) == (valid, kept)
    assert solution.status == ("solved" if valid and kept else "unsolved")
    assert solution.grid == PUZZLE.task.render(grid)


def test_the_trace_tells_of_every_step():
    steps = solve((WRONG, -1), (BROKEN, 0.5), (RIGHT, 1)).trace
    assert [one.step for one in steps] == [1, 2, 3]
    assert [one.grid for one in steps] == [
        PUZZLE.task.render(grid) for grid in (WRONG, BROKEN, RIGHT)
    ]
    empty = int(np.count_nonzero(PUZZLE.board == 0))
    assert [one.changed for one in steps] == [empty, 2, 1]
    assert steps[0].violations > 1
    assert steps[1].violations > 1
    assert steps[2].violations == 0
    assert [one.q_hex for one in steps] == ["bf800000", "3f000000", "3f800000"]
    assert len({one.chain for one in steps}) == 3


def test_nan_is_an_error_of_one_puzzle_alone():
    first, second = puzzles("sudoku4", 2)
    scripts = {
        first.text: [(answer(first), -1.0), (answer(first), NAN)],
        second.text: [(answer(second), -1.0), (answer(second), -1.0), (answer(second), 1.0)],
    }
    engine = SolverEngine({"m": ScriptedModel("sudoku4", scripts)})
    for name, puzzle in (("bad", first), ("good", second)):
        engine.add(name, "m", puzzle, SolveParams())
    found = {}
    while engine.has_work:
        found |= {update.name: update.solution for update in engine.step()}
    assert found["bad"].status == "error"
    assert found["bad"].reason == "rollout 0 gave a NaN or an infinity at step 2"
    assert (found["bad"].steps, found["bad"].halted_by) == (1, None)
    assert (found["good"].status, found["good"].steps) == ("solved", 3)
