"""Real solvers of scripted models, in this process, behind AsyncSolver's interface."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import numpy as np
from scripted_solvers import ChaoticModel, ScriptedModel, answer, puzzles

from detinfer.engine.solver_config import SolveOutput, SolverInfo, SolverModel
from detinfer.engine.solver_host import SolverHost
from detinfer.errors import DetinferError, EngineDeadError, GenerationTimeoutError, QueueFullError
from detinfer.recursive.params import SolveParams
from detinfer.recursive.result import Solution, TraceStep

EASY, HARD, BROKEN = puzzles("sudoku4", 3)
CARD = {"task": "sudoku4", "verified": 0.996, "halting_step": 1.25}


def scripted(name: str) -> ScriptedModel:
    """A model that solves EASY at the second step, HARD never, and fails at BROKEN."""
    right, empty = answer(EASY), HARD.board.copy()
    model = ScriptedModel(
        "sudoku4",
        {
            EASY.text: [(EASY.board, -1.5), *[(right, 2.5)] * 1100],
            HARD.text: [(empty, -3.0)] * 1100,
            BROKEN.text: [(BROKEN.board, float("nan"))] * 4,
        },
    )
    model.name = name
    return model


def host(*names: str, allow_fast: bool = True) -> SolverHost:
    """A ``SolverHost`` of scripted models."""
    fast = {name: scripted(name) for name in names if allow_fast}
    return hosted({name: scripted(name) for name in names}, fast)


def chaotic_host(*tasks: str, defect: bool = False) -> SolverHost:
    """A ``SolverHost`` of models that solve any board of their task, whose name they have.

    Args:
        defect: whether their answers follow the batch; those of fast ones do.
    """
    fast = {task: ChaoticModel(task, defect=True) for task in tasks}
    return hosted({task: ChaoticModel(task, defect=defect) for task in tasks}, fast)


def hosted(models: Mapping[str, Any], fast: Mapping[str, Any]) -> SolverHost:
    """A ``SolverHost`` of models by name, and of their fast counterparts if there are any."""
    return SolverHost(
        {**models, **{f"{name}, fast": model for name, model in fast.items()}},
        SolverInfo(
            {
                name: SolverModel(
                    name,
                    model.task.name,
                    model.task.cells,
                    1234,
                    {"kernels": "scripted"},
                    f"detinfer-test-{name}",
                    f"detinfer-fast-{name}" if fast else None,
                    CARD,
                )
                for name, model in models.items()
            },
            max_num_seqs=64,
            allow_fast=bool(fast),
        ),
    )


class TinySolver:
    """Steps whenever a consumer waits for an output.

    Args:
        solvers: what steps; scripted models of ``names`` unless given.

    Attributes:
        delay: seconds between steps.
        open: ids of puzzles that somebody waits for.
    """

    def __init__(
        self,
        *names: str,
        delay: float = 0.0,
        capacity: int = 128,
        solvers: SolverHost | None = None,
        **options: Any,
    ):
        self._host = solvers or host(*(names or ("tiny",)), **options)
        self.info, self.state, self.pid = self._host.info, "ready", os.getpid()
        self.capacity, self.delay = capacity, delay
        self.time_out = False
        self.open: dict[str, deque[SolveOutput]] = {}
        self.asked: list[tuple[str, SolveParams, bool]] = []

    async def solve(
        self, model: str, grid: str, params: SolveParams, request_id: str, deterministic: bool
    ) -> AsyncGenerator[TraceStep | Solution, None]:
        if len(self.open) >= self.capacity:
            raise QueueFullError(f"{len(self.open)} requests are open, at most {self.capacity}")
        self.asked.append((model, params, deterministic))
        own = self.open[request_id] = deque()
        self._host.add_request(request_id, model, grid, params, deterministic)
        try:
            while True:
                while not own:
                    await asyncio.sleep(self.delay)
                    if self.state == "dead":
                        raise EngineDeadError("the engine process ended")
                    if self.time_out:
                        raise GenerationTimeoutError("the answer took more than 600 s")
                    for output in self._host.step():
                        self.open[output.request_id].append(output)
                output = own.popleft()
                for step in output.steps:
                    yield step
                if isinstance(output.end, DetinferError):
                    raise output.end
                if output.end is not None:
                    yield output.end
                    return
        finally:
            self._host.abort(request_id)
            del self.open[request_id]

    async def stats(self) -> dict[str, Any]:
        return self._host.stats()


def text_of(cells: np.ndarray) -> str:
    """A board of ``EASY``'s kind, as text."""
    return EASY.task.render(cells)
