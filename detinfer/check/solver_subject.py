"""Loads of puzzles on a solver engine in this process."""

from __future__ import annotations

import torch

from detinfer.check.answer import Answer
from detinfer.check.load import Load, PuzzleRow, SolverPlacement
from detinfer.check.solver_answer import SolverAnswer
from detinfer.check.solver_check import made_targets, one_puzzle
from detinfer.check.target import Bounds, Target, solving
from detinfer.errors import DetinferError
from detinfer.machine import usable_cores
from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.puzzle import read_puzzle
from detinfer.recursive.solver_engine import SolverEngine
from detinfer.recursive.training.trainer import initial_weights

# Who else is served: of another task than the one under test, with random weights.
_STRANGERS = (
    RecursiveConfig("sudoku4", 5, 16, 24, "units", 3, 64),
    RecursiveConfig("sudoku6", 7, 36, 24, "units", 3, 64),
)


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

    tries = 1

    def __init__(self, source: str, max_rows: int, threads: int | None, fast: bool) -> None:
        modes = (True, False) if fast else (True,)
        self._models = {one: RecursiveModel.load(source, deterministic=one) for one in modes}
        model = self._models[True]
        self.source, self.fingerprint = model.name, model.system_fingerprint
        self.parts = model.parts
        self.bounds = Bounds(
            model.config.vocab,
            model.config.cells,
            max_rows,
            fast,
            threads or usable_cores(),
            other_models=True,
        )
        self._strangers = {one: _stranger(model.task.name, one) for one in modes}
        self._strange = one_puzzle(self._strangers[True].task)
        self._steps = 0

    def targets(self) -> list[Target]:
        """Return puzzles of the model's own task."""
        return made_targets(self._models[True].task)

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
            one.threads = placement.threads or self.bounds.max_num_seqs or 1
        engine = SolverEngine(models, max_batch=placement.max_batch or len(load.rows))
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
                answers[place] = SolverAnswer.of_told(model.task, vars(update.solution))
            clock += 1
        self._steps += clock
        return answers

    def _add(self, engine: SolverEngine, name: str, row: PuzzleRow) -> None:
        which = "stranger" if row.stranger else "checked"
        board = self._strange if row.stranger else str(row.prompt)
        engine.add(name, which, read_puzzle(engine.models[which].task, board), solving(row.params))


def _stranger(task: str, deterministic: bool) -> RecursiveModel:
    """Return a model of another task, with random weights."""
    config = next(one for one in _STRANGERS if one.task != task)
    weights = initial_weights(config, torch.Generator().manual_seed(0))
    return RecursiveModel("stranger", config, weights, deterministic=deterministic)
