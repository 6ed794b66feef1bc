"""Solving puzzles in the caller's own process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from detinfer.errors import ConfigError, RequestError
from detinfer.recursive.default_model import default_model
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.params import SolveParams
from detinfer.recursive.puzzle import Puzzle, read_puzzle
from detinfer.recursive.result import Solution, TraceStep
from detinfer.recursive.solver_engine import SolverEngine, Update

MAX_PUZZLES = 4096  # of one call


class Solver:
    """A model, or all that come with the package, ready to solve.

    Args:
        model: a name of ``shipped.names()``, or a ``.safetensors`` file; None is for each puzzle
            the first shipped model that reads such a board, loaded when it is first needed.
        deterministic: by the contract's kernels; else by PyTorch's, whose bits follow the batch.
        threads: 0 for as many as there are cores.
        max_batch: most runs in a step of a model.

    Raises:
        ConfigError: the file is none of ours, or settings that cannot work.
        ModelLoadError: no model of that name comes with the package.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        deterministic: bool = True,
        threads: int = 0,
        max_batch: int = 64,
    ) -> None:
        if isinstance(max_batch, bool) or not isinstance(max_batch, int) or max_batch < 1:
            raise ConfigError(f"max_batch: got {max_batch!r}, expected an integer of at least 1")
        self._deterministic, self._threads, self._max_batch = deterministic, threads, max_batch
        self._models: dict[str, RecursiveModel] = {}
        self._only = None if model is None else self._load(model)

    def solve(
        self, puzzles: str | Sequence[str], params: SolveParams | None = None
    ) -> list[Solution]:
        """Solve every puzzle; the answers come in the puzzles' order.

        Args:
            puzzles: a board, or a list of at most 4,096; a character a cell, row by row.
            params: for all of them; None is ``SolveParams()``.

        Raises:
            RequestError: a board that is none, or has several solutions; nothing has run then.
        """
        boards = [puzzles] if isinstance(puzzles, str) else list(puzzles)
        if len(boards) > MAX_PUZZLES:
            raise RequestError(
                f"puzzles: got {len(boards)}, expected at most {MAX_PUZZLES} a call", "puzzles"
            )
        found: dict[str, Solution] = {}
        for update in self._run(boards, params or SolveParams()):
            if update.solution is not None:
                found[update.name] = update.solution
        return [found[str(at)] for at in range(len(boards))]

    def stream(
        self, puzzle: str, params: SolveParams | None = None
    ) -> Iterator[TraceStep | Solution]:
        """Solve one puzzle, and tell of every step when it is done; the last is the solution.

        Raises:
            RequestError: as ``solve``, before the first step.
        """
        params = replace(params or SolveParams(), trace=True)
        for update in self._run([puzzle], params):
            yield from update.steps
            if update.solution is not None:
                yield update.solution

    def _run(self, boards: list[str], params: SolveParams) -> Iterator[Update]:
        """Run an engine of its own: whoever stops listening leaves nothing behind."""
        read = [self._read(board, at, len(boards)) for at, board in enumerate(boards)]
        models = {model.name: model for model, _ in read}
        slots = min(self._max_batch, len(read) * params.rollouts)
        engine = SolverEngine(models, max_batch=slots, max_waiting=MAX_PUZZLES)
        for at, (model, puzzle) in enumerate(read):
            engine.add(str(at), model.name, puzzle, params)
        while engine.has_work:
            yield from engine.step()

    def choose(self, puzzle: str) -> RecursiveModel:
        """Return the model that a puzzle is solved by.

        Raises:
            RequestError: none reads such a board.
        """
        if self._only is not None:
            return self._only
        name = default_model(puzzle)
        if name not in self._models:
            self._models[name] = self._load(name)
        return self._models[name]

    def _read(self, board: str, at: int, count: int) -> tuple[RecursiveModel, Puzzle]:
        try:
            model = self.choose(board)
            return model, read_puzzle(model.task, board)
        except RequestError as error:
            if count == 1:
                raise
            raise RequestError(f"puzzles[{at}]: {error}", error.param) from None

    def _load(self, source: str | Path) -> RecursiveModel:
        return RecursiveModel.load(source, deterministic=self._deterministic, threads=self._threads)
