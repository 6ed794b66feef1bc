"""Loads of puzzles on a solver engine in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from detinfer.check.answer import Answer
from detinfer.check.load import Load, PuzzleRow, SolverPlacement
from detinfer.check.solver_check import SOME, puzzle_targets
from detinfer.check.target import Bounds, Target
from detinfer.errors import DetinferError
from detinfer.machine import usable_cores
from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.puzzle import read_puzzle
from detinfer.recursive.result import Solution
from detinfer.recursive.solver_engine import SolverEngine
from detinfer.recursive.tasks import Task
from detinfer.recursive.training.trainer import initial_weights

_PUZZLES = 3  # seed of the generator: neither a training's nor its tests'
# Who else is served: of another task than the one under test, with random weights.
_STRANGERS = (
    RecursiveConfig("sudoku4", 5, 16, 24, "units", 3, 64),
    RecursiveConfig("sudoku6", 7, 36, 24, "units", 3, 64),
)


@dataclass(frozen=True)
class SolverAnswer(Answer):
    """A solution; two are equal only if all in them is, the step they halted at included."""

    unit: ClassVar[str] = "cell"

    @classmethod
    def of_solution(cls, task: Task, solution: Solution) -> SolverAnswer:
        """Return a solution as a check compares it."""
        end = f"{solution.halted_by} after {solution.steps} steps, q {solution.q_hex}"
        return cls(
            tuple(map(int, task.parse(solution.grid))),
            solution.grid,
            f"{solution.status}: {end}, rollout {solution.rollout}",
            solution.digest,
        )

    def difference(self, other: Answer) -> str:
        """Return what differs, in words; the two must not be equal."""
        place = self.first_difference(other)
        if place is not None:
            return f"cell {place + 1} of the answer is the first that differs"
        if self.finish_reason != other.finish_reason:
            return f"the grids agree, but not how it ended: {other.finish_reason}"
        return "grids and ends agree, the states on the way do not"


class SolverSubject:
    """Plays loads of puzzles.

    Args:
        source: a name of ``shipped.names()``, or a ``.safetensors`` file.
        max_rows: most puzzles in a load.
        threads: most threads; None is the number of usable cores.
        fast: whether to load the fast counterpart too.

    Raises:
        ConfigError: the file is none of ours.
        ModelLoadError: no model of that name comes with the package.
    """

    def __init__(self, source: str, max_rows: int, threads: int | None, fast: bool) -> None:
        modes = (True, False) if fast else (True,)
        self._models = {one: RecursiveModel.load(source, deterministic=one) for one in modes}
        model = self._models[True]
        self.source, self.fingerprint = model.name, model.system_fingerprint
        self.parts = model.parts
        self.bounds = Bounds(
            model.config.vocab, model.config.cells, max_rows, fast, threads or usable_cores()
        )
        self._strangers = {one: _stranger(model.task.name, one) for one in modes}
        task = self._strangers[True].task
        self._strange = task.render(task.generate(_PUZZLES, 0, 1).boards[0])
        self._steps = 0

    def targets(self) -> list[Target]:
        """Return puzzles of the model's own task."""
        task = self._models[True].task
        made = task.generate(_PUZZLES, 0, SOME)
        boards = [task.render(board) for board in made.boards]
        return puzzle_targets(boards, made.difficulty.tolist())

    def stats(self) -> dict[str, int]:
        """See ``Subject.stats``."""
        return {"steps": self._steps}

    def play(self, load: Load) -> dict[int, Answer]:
        """See ``Subject.play``."""
        placement = load.placement
        assert isinstance(placement, SolverPlacement)
        model = self._models[placement.deterministic]
        stranger = self._strangers[placement.deterministic]
        models = {"checked": model, "stranger": stranger}
        for one in models.values():
            one.threads = placement.threads
        engine = SolverEngine(models, max_batch=placement.max_batch)
        answers: dict[int, Answer] = {}
        clock = 0
        while len(answers) < load.targets:
            for place, row in enumerate(load.rows):
                assert isinstance(row, PuzzleRow)
                if row.arrival == clock:
                    self._add(engine, str(place), row)
                if row.abort_after is not None and row.arrival + row.abort_after == clock:
                    engine.abort(str(place))
            for update in engine.step():
                place = int(update.name)
                if update.solution is None or load.rows[place].target is None:
                    continue
                if update.solution.status == "error":
                    raise DetinferError(f"load {load.number}: {update.solution.reason}")
                answers[place] = SolverAnswer.of_solution(model.task, update.solution)
            clock += 1
        self._steps += clock
        return answers

    def _add(self, engine: SolverEngine, name: str, row: PuzzleRow) -> None:
        which = "stranger" if row.stranger else "checked"
        board = self._strange if row.stranger else str(row.prompt)
        engine.add(name, which, read_puzzle(engine.models[which].task, board), row.params)


def _stranger(task: str, deterministic: bool) -> RecursiveModel:
    """Return a model of another task, with random weights."""
    config = next(one for one in _STRANGERS if one.task != task)
    weights = initial_weights(config, torch.Generator().manual_seed(0))
    return RecursiveModel("stranger", config, weights, deterministic=deterministic)
