"""Solvers as a process of their own runs them: boards are read here, and solved here."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detinfer.engine.solver_config import (
    MAX_BATCH,
    SolveOutput,
    SolverConfig,
    SolverInfo,
    SolverModel,
)
from detinfer.errors import DetinferError, EngineDeadError, RequestError
from detinfer.recursive import shipped
from detinfer.recursive.lane import Model
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.params import SolveParams
from detinfer.recursive.puzzle import Puzzle, read_puzzle
from detinfer.recursive.solver_engine import SolverEngine

# Seconds that reading boards may take before a step. A board is read in 0.1 ms, but the search for
# a second solution of a hard one may take a second: those being solved wait for one at most.
READING = 0.01


class Asked(NamedTuple):
    """A request that waits."""

    model: str
    grid: str
    params: SolveParams
    deterministic: bool


class SolverHost:
    """A ``SolverEngine`` behind the face that the process drives (``process.Hosted``).

    Puzzles wait here, unread, and are given to the engine when there are slots for them.

    Args:
        models: by name; the fast ones by ``fast_name``.
        info: what is told of them.
    """

    tokenizer = None
    refused = ()  # an output says so

    def __init__(self, models: Mapping[str, Model], info: SolverInfo) -> None:
        self._engine = SolverEngine(models, max_batch=MAX_BATCH)
        self.info = info
        self.started: list[str] = []
        self._waiting: dict[str, Asked] = {}
        self._running: dict[str, None] = {}  # in order of arrival
        self._steps = 0

    def add_request(
        self,
        request_id: str,
        model: str,
        grid: str,
        params: SolveParams,
        deterministic: bool = True,
    ) -> None:
        """Queue a puzzle; its board is read when its turn comes.

        Raises:
            RequestError: its id is in use.
        """
        if request_id in self._waiting or request_id in self._running:
            raise RequestError(f"request_id: {request_id!r} is in use", "request_id")
        self._waiting[request_id] = Asked(model, grid, params, deterministic)

    def abort(self, request_id: str) -> None:
        """Give up a puzzle; unknown and finished ones are ignored."""
        self._waiting.pop(request_id, None)
        if request_id in self._running:
            del self._running[request_id]
            self._engine.abort(request_id)

    def abort_all(self, reason: str) -> list[SolveOutput]:
        """Give up every puzzle and tell those who wait."""
        ended = [*self._running, *self._waiting]
        for request_id in ended:
            self.abort(request_id)
        return [SolveOutput(one, [], EngineDeadError(reason)) for one in ended]

    def has_unfinished(self) -> bool:
        """Return whether a step has work to do."""
        return bool(self._running or self._waiting)

    def step(self) -> list[SolveOutput]:
        """Read boards while there are slots, and give every puzzle of a model one step."""
        self.started.clear()
        outputs = self._read()
        if self._running:
            self._steps += 1
            for update in self._engine.step():
                if update.solution is not None:
                    del self._running[update.name]
                outputs.append(SolveOutput(update.name, update.steps, update.solution))
        return outputs

    def _read(self) -> list[SolveOutput]:
        """Give puzzles that wait to the engine; return those refused."""
        refused: list[SolveOutput] = []
        until = time.monotonic() + READING
        while self._waiting and len(self._running) < MAX_BATCH and time.monotonic() < until:
            request_id, asked = next(iter(self._waiting.items()))
            del self._waiting[request_id]
            model = asked.model if asked.deterministic else fast_name(asked.model)
            try:
                puzzle = self._puzzle(model, asked.grid)
                self._engine.add(request_id, model, puzzle, asked.params)
            except DetinferError as error:
                refused.append(SolveOutput(request_id, [], error))
            else:
                self._running[request_id] = None
                self.started.append(request_id)
        return refused

    def _puzzle(self, model: str, grid: str) -> Puzzle:
        puzzle = read_puzzle(self._engine.models[model].task, grid)
        clash = None if puzzle.unsolvable is None else puzzle.task.clash(puzzle.board)
        if clash is not None:
            raise RequestError(f"grid: {clash}", "grid")
        return puzzle

    def stats(self) -> dict[str, int]:
        """Count puzzles, and the steps since the start."""
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
            "steps": self._steps,
        }


def load_host(config: SolverConfig) -> SolverHost:
    """Load the models and their fast counterparts, which are small, and return what serves them."""
    models = _load(config, deterministic=True)
    fast = _load(config, deterministic=False) if config.allow_fast else {}
    about = {
        name: _about(model, fast.get(name), source)
        for (name, model), source in zip(models.items(), config.models, strict=True)
    }
    info = SolverInfo(about, max_num_seqs=MAX_BATCH, allow_fast=config.allow_fast)
    return SolverHost({**models, **{fast_name(name): one for name, one in fast.items()}}, info)


def fast_name(name: str) -> str:
    """Return what the engine knows a model's fast counterpart by."""
    return f"{name}, fast"


def _load(config: SolverConfig, deterministic: bool) -> dict[str, RecursiveModel]:
    threads = config.threads or 0
    return {
        config.name_of(source): RecursiveModel.load(
            source, deterministic=deterministic, threads=threads
        )
        for source in config.models
    }


def _about(model: RecursiveModel, fast: RecursiveModel | None, source: str) -> SolverModel:
    return SolverModel(
        name=model.name,
        task=model.task.name,
        cells=model.config.cells,
        parameters=sum(math.prod(shape) for shape in model.config.shapes().values()),
        fingerprint=model.parts,
        system_fingerprint=model.system_fingerprint,
        fast_fingerprint=None if fast is None else fast.system_fingerprint,
        card=_card(source),
    )


def _card(source: str) -> dict[str, Any]:
    """Return a shipped model's card, or what a file has beside itself under its own name."""
    if not source.endswith(".safetensors"):
        return shipped.card(source)
    beside = Path(source).with_suffix(".json")
    try:
        told = json.loads(beside.read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
