"""Puzzles of many callers at once: they join and leave between any two supervision steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from detinfer.errors import QueueFullError, RequestError
from detinfer.recursive.chain import first_link
from detinfer.recursive.lane import Lane, Model
from detinfer.recursive.params import SolveParams
from detinfer.recursive.puzzle import Puzzle
from detinfer.recursive.result import Solution, TraceStep
from detinfer.recursive.run import Job


class Update(NamedTuple):
    """What a step of the engine gave of one puzzle.

    Attributes:
        name: of the puzzle, as it was added.
        steps: what its runs did, if ``trace`` was asked for.
        solution: when it has ended.
    """

    name: str
    steps: list[TraceStep]
    solution: Solution | None


class SolverEngine:
    """Continuous batching of supervision steps, for one or several models.

    A puzzle's answer and digest are a function of the model, the board and the parameters: of
    nothing else that is in the engine. To be driven by one thread.

    Args:
        models: by the name that puzzles ask for them.
        max_batch: most runs in a model's step: its slots.
        max_waiting: most puzzles that have not ended.
    """

    def __init__(
        self, models: Mapping[str, Model], *, max_batch: int = 64, max_waiting: int = 4096
    ) -> None:
        self.models = dict(models)
        self.max_waiting = max_waiting
        self._lanes = {name: Lane(model, max_batch) for name, model in self.models.items()}
        self._turns = list(self._lanes.values())
        self._jobs: dict[str, Job] = {}  # that have not ended
        self._known: list[Job] = []  # of them, those that need no step

    @property
    def has_work(self) -> bool:
        """Return whether a step would do or tell something."""
        return bool(self._jobs)

    @property
    def running(self) -> int:
        """Return how many runs have a slot."""
        return sum(lane.running for lane in self._turns)

    @property
    def waiting(self) -> int:
        """Return how many puzzles have runs without a slot."""
        return sum(lane.waiting for lane in self._turns)

    def add(self, name: str, model: str, puzzle: Puzzle, params: SolveParams) -> None:
        """Take in a puzzle, under a name of its own.

        Raises:
            RequestError: there is no such model, or it reads other boards.
            QueueFullError: too many puzzles have not ended.
            ValueError: a puzzle of this name has not ended.
        """
        if model not in self.models:
            raise RequestError(f"model: got {model!r}, expected {_either(self.models)}", "model")
        task = self.models[model].task
        if puzzle.task.name != task.name:
            raise RequestError(
                f"grid: got a board of {puzzle.task.name}, expected {task.name} for {model}", "grid"
            )
        if name in self._jobs:
            raise ValueError(f"name: a puzzle called {name!r} has not ended")
        if len(self._jobs) >= self.max_waiting:
            raise QueueFullError(f"{self.max_waiting} puzzles are being solved, try again later")
        job = Job(name, puzzle, params, first_link(self.models[model].parts, puzzle, params))
        self._jobs[name] = job
        if puzzle.unsolvable is None:
            self._lanes[model].add(job)
        else:
            self._known.append(job)

    def step(self) -> list[Update]:
        """Step one model that has runs, each in its turn, and tell what came of it."""
        gave: dict[Job, list[TraceStep]] = {job: [] for job in self._known}
        self._known.clear()
        lane = next((one for one in self._turns if one.has_work), None)
        if lane is not None:
            self._turns.remove(lane)
            self._turns.append(lane)
            for run, told in lane.step():
                gave.setdefault(run.job, []).extend(told)
        return [update for job, steps in gave.items() if (update := self._told(job, steps))]

    def _told(self, job: Job, steps: list[TraceStep]) -> Update | None:
        solution = job.solution() if job.ended else None
        if solution is not None:
            del self._jobs[job.name]
        return Update(job.name, steps, solution) if steps or solution else None

    def abort(self, name: str) -> bool:
        """Give up a puzzle; return whether it had not ended. Nothing more is told of it."""
        job = self._jobs.pop(name, None)
        if job is None:
            return False
        job.given_up = True
        if job in self._known:
            self._known.remove(job)
        for lane in self._turns:
            lane.remove(job)
        return True


def _either(names: Mapping[str, object]) -> str:
    return f"one of {', '.join(names)}" if len(names) > 1 else next(iter(names), "no model at all")
