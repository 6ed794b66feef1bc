"""One model's slots: runs that are stepped together, whichever they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from detinfer.kernels.cpu.latent_noise import add_noise
from detinfer.recursive.model import NotFiniteError
from detinfer.recursive.result import TraceStep
from detinfer.recursive.run import Job, Run
from detinfer.recursive.tasks import Boards, Task
from detinfer.rounding import contract_rounding

F32 = npt.NDArray[np.float32]


class Model(Protocol):
    """What is asked of a model; see model.RecursiveModel."""

    @property
    def task(self) -> Task:
        """Return whose boards it reads."""

    @property
    def parts(self) -> Mapping[str, str]:
        """What its bits depend on."""

    def start(self, count: int) -> tuple[F32, F32]:
        """Return fresh states. [count, tokens, hidden]"""

    def step(self, boards: Boards, y: F32, z: F32) -> tuple[Boards, F32]:
        """Update states in place; return grids [B, cells] and q [B].

        Raises:
            NotFiniteError: naming puzzles that gave no number; no state has changed then.
        """


class Lane:
    """A model and the runs it works at: slot i of the arrays is run i's.

    A run that ends leaves its slot to the last one, so that a step is over contiguous rows. Which
    slot a run has, and beside whom, nothing of its own is computed from.

    Args:
        model: steps the runs.
        slots: most runs in a step.
    """

    def __init__(self, model: Model, slots: int) -> None:
        self.model, self.slots = model, slots
        self._fresh_y, self._fresh_z = model.start(1)
        self._boards = np.zeros((slots, model.task.cells), np.int8)
        self._y, self._z = (
            np.zeros((slots, *one.shape[1:]), np.float32) for one in (self._fresh_y, self._fresh_z)
        )
        self._runs: list[Run] = []
        self._waiting: deque[Job] = deque()

    @property
    def running(self) -> int:
        """Return how many runs have a slot."""
        return len(self._runs)

    @property
    def waiting(self) -> int:
        """Return how many jobs have runs without a slot."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Return whether there is a run to step."""
        return bool(self._runs or self._waiting)

    def add(self, job: Job) -> None:
        """Let a job's runs join when slots are free."""
        self._waiting.append(job)

    def remove(self, job: Job) -> None:
        """Free the slots of a job that was given up."""
        if job in self._waiting:
            self._waiting.remove(job)
        self._leave()

    def step(self) -> list[tuple[Run, list[TraceStep]]]:
        """Give every run a step, and return what each gave; those that ended have left."""
        self._admit()
        self._add_noise()
        gave: list[tuple[Run, list[TraceStep]]] = []
        while self._runs:
            count = len(self._runs)
            y, z = self._y[:count], self._z[:count]
            try:
                grids, q = self.model.step(self._boards[:count], y, z)
            except NotFiniteError as error:
                for slot in error.puzzles:
                    self._runs[slot].failed = True
                    gave.append((self._runs[slot], []))
                self._leave()
                continue
            rows = zip(self._runs, grids, q, y, z, strict=True)
            gave += [(run, run.advance(*row)) for run, *row in rows]
            self._leave()
            break
        return gave

    def _admit(self) -> None:
        while self._waiting and len(self._runs) < self.slots:
            run, slot = self._waiting[0].begin(), len(self._runs)
            if run.job.all_begun:
                self._waiting.popleft()
            self._runs.append(run)
            self._boards[slot] = run.board
            self._y[slot], self._z[slot] = self._fresh_y[0], self._fresh_z[0]

    def _add_noise(self) -> None:
        noisy = [(run, z) for run, z in zip(self._runs, self._z, strict=False) if run.is_noisy]
        if not noisy:
            return
        with contract_rounding():
            for run, z in noisy:  # keyed by what is the run's own
                key = (np.uint64(one) for one in (run.job.params.seed, run.rollout, run.step + 1))
                add_noise(z.reshape(-1), *key, np.float32(run.job.params.noise))

    def _leave(self) -> None:
        """Take ended runs out; the last of the others move into their slots."""
        for slot in reversed(range(len(self._runs))):
            if self._runs[slot].ended:
                last = self._runs.pop()
                if slot < len(self._runs):
                    self._runs[slot] = last
                    for array in (self._boards, self._y, self._z):
                        array[slot] = array[len(self._runs)]
