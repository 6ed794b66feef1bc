"""How well and how fast recursive models solve puzzles that nobody trained on.

    python -m benchmarks.recursive --json benchmarks/results/recursive.json

Accuracy by the number of steps, what each way to halt gives and costs, what rollouts add; then
puzzles a second beside a plain PyTorch loop of the same model, and of halting early beside a fixed
number of steps. A Markdown page and a picture go beside the JSON.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import page
from benchmarks.common import report
from benchmarks.recursive_picture import Way, picture
from benchmarks.recursive_speed import adaptive, plain_network, speed
from detinfer.recursive import shipped
from detinfer.recursive.model import I8, RecursiveModel
from detinfer.recursive.params import SolveParams
from detinfer.recursive.result import Solution
from detinfer.recursive.solver import Solver
from detinfer.recursive.tasks import Puzzles, Task
from detinfer.recursive.training.data import TEST

STEPS = (1, 2, 4, 8, 16, 32)
LIMIT = 16  # steps of a puzzle that may halt earlier
BATCH = 64
ROLLOUTS = SolveParams(max_steps=LIMIT, rollouts=4)
SHOWN = 6  # most steps of a board's way that is drawn

Rows = list[dict[str, Any]]


def watch(model: RecursiveModel, boards: I8, steps: int) -> tuple[I8, Any]:
    """Return every puzzle's grid and q after every step. [steps, N, cells], [steps, N]"""
    grids = np.empty((steps, *boards.shape), np.int8)
    q = np.empty((steps, len(boards)), np.float32)
    for first in range(0, len(boards), BATCH):
        part = slice(first, first + BATCH)
        y, z = (state.copy() for state in model.start(len(boards[part])))
        for step in range(steps):
            grids[step, part], q[step, part] = model.step(boards[part], y, z)
    return grids, q


def halts(task: Task, boards: I8, grids: I8, q: Any) -> dict[str, Any]:
    """Return at which step each puzzle ends, from 0, for every way to halt. [N] each"""
    sure = q > 0
    holds = np.stack([task.holds(boards, step) for step in grids])
    same = np.zeros_like(sure)
    same[1:] = (grids[1:] == grids[:-1]).all(2)
    ends = {"fixed": np.zeros_like(sure), "q": sure, "verified": sure & holds, "stable": same}
    for done in ends.values():
        done[-1] = True
    return {name: done.argmax(0) for name, done in ends.items()}


def accuracy(model: RecursiveModel, puzzles: Puzzles) -> tuple[Rows, Rows, I8]:
    """Return shares solved by number of steps and by way to halt, and all grids."""
    grids, q = watch(model, puzzles.boards, max(STEPS))
    right = (grids == puzzles.answers).all(2)
    by_steps = [
        {"model": model.name, "steps": steps, "exact": float(right[steps - 1].mean())}
        for steps in STEPS
    ]
    ways = halts(model.task, puzzles.boards, grids[:LIMIT], q[:LIMIT])
    by_halt = [
        {
            "model": model.name,
            "halt": name,
            "exact": float(right[at, np.arange(len(at))].mean()),
            "mean_steps": float(at.mean()) + 1,
        }
        for name, at in ways.items()
    ]
    return by_steps, by_halt, grids


def solve(solver: Solver, model: RecursiveModel, puzzles: Puzzles) -> tuple[dict[str, Any], Rows]:
    """Solve all with the defaults, and what is left with rollouts; tell the whole and its classes.

    Only puzzles that the plain run leaves unsolved are run again: it is one of the rollouts, and
    a puzzle has one answer.
    """
    task = model.task
    boards = [task.render(board) for board in puzzles.boards]
    expected = [task.render(answer) for answer in puzzles.answers]
    plain = solver.solve(boards, SolveParams(max_steps=LIMIT))
    right = np.array([s.grid == answer for s, answer in zip(plain, expected, strict=True)])
    left = np.flatnonzero(~right)
    again: list[Solution] = []
    if len(left):
        again = solver.solve([boards[at] for at in left], ROLLOUTS)
    rolled = right.copy()
    for at, solution in zip(left, again, strict=True):
        rolled[at] = solution.grid == expected[at]
    classes = np.searchsorted(task.hardness, puzzles.difficulty)
    rows = [
        {
            "model": model.name,
            "difficulty": _class(task.hardness, int(one)),
            "puzzles": int((classes == one).sum()),
            "exact": float(right[classes == one].mean()),
            "with_rollouts": float(rolled[classes == one].mean()),
        }
        for one in np.unique(classes)
    ]
    whole = {
        "model": model.name,
        "puzzles": len(right),
        "exact": float(right.mean()),
        "mean_steps": float(np.mean([solution.steps for solution in plain])),
        "with_rollouts": float(rolled.mean()),
        "wrong_but_solved": sum(
            one.status == "solved" and one.grid != answer
            for one, answer in zip(plain, expected, strict=True)
        ),
    }
    return whole, rows


def _class(ends: tuple[float, ...], at: int) -> str:
    if ends[at] == np.inf:
        return f"above {ends[at - 1]:g}"
    return f"to {ends[at]:g}"


def way(model: RecursiveModel, puzzles: Puzzles, grids: I8) -> Way:
    """Choose the puzzle that is first solved latest, but soon enough to be drawn."""
    right = (grids == puzzles.answers).all(2)
    first = np.where(right.any(0), right.argmax(0), SHOWN)
    chosen = int(np.where(first < SHOWN, first, -1).argmax())
    steps = min(int(first[chosen]) + 1, SHOWN)
    render = model.task.render
    boards = [puzzles.boards[chosen], *grids[:steps, chosen]]
    return Way(
        model.name,
        model.task.width,
        [render(board) for board in boards],
        render(puzzles.answers[chosen]),
    )


def parts(result: dict[str, Rows]) -> list[str]:
    """Return the page's parts, as Markdown."""
    shares = {"exact", "with_rollouts", "fixed_exact", "verified_exact"}
    told = {
        name: [{key: f"{v:.1%}" if key in shares else v for key, v in row.items()} for row in rows]
        for name, rows in result.items()
    }
    return [
        f"Unseen puzzles, {LIMIT} steps at most, halting when the model is sure and the rules "
        f"hold; then with {ROLLOUTS.rollouts} rollouts: all but one of the puzzle in disguise.",
        page.table(told["solved"]),
        "By difficulty: a search's dead ends for Sudoku; steps of the path and ways to leave it "
        "for mazes.",
        page.table(told["by_difficulty"]),
        "Exact after a fixed number of steps.",
        page.table(told["by_steps"]),
        f"Ways to halt, {LIMIT} steps at most.",
        page.table(told["by_halt"]),
        f"Puzzles a second, {LIMIT} steps each: our deterministic kernels, and a plain PyTorch "
        "loop of the same weights.",
        page.table(told["speed"]),
        f"The engine's puzzles a second, halting when verified against {LIMIT} steps each.",
        page.table(told["adaptive"]),
    ]


def measured(
    sources: list[str], count: int, curve: int, repeats: int
) -> tuple[dict[str, Rows], list[Way]]:
    """Measure every model; ``curve`` puzzles take all steps, ``count`` are solved."""
    names = ("solved", "by_difficulty", "by_steps", "by_halt", "speed", "adaptive")
    result: dict[str, Rows] = {name: [] for name in names}
    ways = []
    for source in sources:
        model, solver = RecursiveModel.load(source), Solver(source)
        puzzles = model.task.generate(TEST, 0, count)
        some = Puzzles(*(one[:curve] for one in puzzles))
        by_steps, by_halt, grids = accuracy(model, some)
        print(f"{model.name}: steps", file=sys.stderr)
        whole, by_difficulty = solve(solver, model, puzzles)
        print(f"{model.name}: solved", file=sys.stderr)
        result["solved"].append(whole)
        for name, rows in (
            ("by_difficulty", by_difficulty),
            ("by_steps", by_steps),
            ("by_halt", by_halt),
            ("speed", speed(model, plain_network(source), some.boards, LIMIT, repeats)),
            ("adaptive", [adaptive(solver, model, some, LIMIT, repeats)]),
        ):
            result[name] += rows
        print(f"{model.name}: timed", file=sys.stderr)
        ways.append(way(model, some, grids))
    return result, ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="*", help="names or .safetensors files; default: all that are shipped"
    )
    parser.add_argument("--puzzles", type=int, default=2000, help="that are solved, of each kind")
    parser.add_argument("--curve", type=int, default=512, help="that take all steps")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--json", type=Path, help="write results here, a page and a picture beside")
    args = parser.parse_args()
    result, ways = measured(args.models or shipped.names(), args.puzzles, args.curve, args.repeats)
    title = "recursive models: accuracy by steps, and speed"
    told = report(title, result["solved"], result, args.json)
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in result["by_steps"]:
        curves.setdefault(row["model"], []).append((row["steps"], row["exact"]))
    if args.json:
        page.write(args.json, told, parts(result), picture("exact by steps", curves, ways))


if __name__ == "__main__":
    main()
