"""``POST /v1/solve``: the body's fields, and what is answered."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from detinfer.engine.solver_config import SolverInfo
from detinfer.errors import RequestError
from detinfer.recursive.params import (
    MAX_NOISE,
    MAX_ROLLOUTS,
    MAX_STEPS,
    MAX_THRESHOLD,
    Halt,
    SolveParams,
)
from detinfer.recursive.result import HaltedBy
from detinfer.server.api.bodies.fields import Integer, Seed, documented, needs, stated
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.errors import ModelNotFoundError

MAX_PUZZLES = 1024  # of a call
MAX_CALL_STEPS = 1 << 20  # of all puzzles of a call, and all their rollouts

Grid = Annotated[str, stated(minLength=1)]
Grids = Annotated[list[Grid], Field(fail_fast=True), stated(minItems=1, maxItems=MAX_PUZZLES)]
_PARAMS = (
    "max_steps",
    "halt",
    "halt_threshold",
    "stable_steps",
    "rollouts",
    "noise",
    "seed",
    "trace",
)


class SolveRequest(StrictBody):
    """The body of ``POST /v1/solve``; a list of grids gives a list of answers."""

    several_types: ClassVar[dict[str, str]] = {"grid": "a string or a list of strings"}

    model_config = ConfigDict(json_schema_extra=needs("grid"))

    model: str | None = Field(None, description="needed where several solvers are served")
    grid: Grid | Grids | None = Field(None, description="the board: a character a cell, row by row")
    max_steps: Annotated[Integer, documented(1, MAX_STEPS)] | None = Field(
        None, description="16 unless given"
    )
    halt: Halt | None = Field(None, description="verified unless given")
    halt_threshold: Annotated[float, documented(-MAX_THRESHOLD, MAX_THRESHOLD)] | None = None
    stable_steps: Annotated[Integer, documented(2, MAX_STEPS)] | None = None
    rollouts: Annotated[Integer, documented(1, MAX_ROLLOUTS)] | None = None
    noise: Annotated[float, documented(0.0, MAX_NOISE)] | None = Field(
        None, description="on the latent state in place of disguises; 0 unless given"
    )
    seed: Seed | None = Field(None, description="of disguises and noise, 0 unless given")
    trace: bool | None = Field(None, description="whether the answer tells of every step")
    stream: bool | None = None
    deterministic: bool | None = None


class Verdict(BaseModel):
    """The halting head's last output, and its 32 bits."""

    value: float
    hex: str


class TracedStep(BaseModel):
    """One supervision step."""

    step: int
    grid: str
    changed: int
    violations: int
    q: Verdict
    chain: str
    rollout: int


class SolveUsage(BaseModel):
    """What an answer took: supervision steps of the run it is from."""

    steps: int


class SolveResponse(BaseModel):
    """One answer; ``solution`` is null unless ``status`` is solved, ``grid`` never is."""

    id: str
    object: Literal["solution"]
    created: int
    model: str
    status: Literal["solved", "unsolved", "unsolvable"]
    solution: str | None
    grid: str
    puzzle: str
    valid: bool
    clues_kept: bool
    steps: int
    halted_by: HaltedBy | None
    rollout: int
    q: Verdict | None
    reason: str | None
    trace: list[TracedStep] | None
    deterministic: bool
    digest: str
    system_fingerprint: str
    usage: SolveUsage


def solve_params(body: SolveRequest) -> SolveParams:
    """Return what a body asks for.

    Raises:
        RequestError: naming the field that is out of range.
    """
    given = {name: getattr(body, name) for name in _PARAMS}
    return SolveParams(**{name: value for name, value in given.items() if value is not None})


def grids(body: SolveRequest, params: SolveParams, capacity: int) -> list[str]:
    """Return the boards of a call, unread.

    Args:
        body: has them.
        params: of each.
        capacity: puzzles that can be open at a time.

    Raises:
        RequestError: none, or too many for one call.
    """
    if body.grid is None:
        raise RequestError("grid: missing", "grid")
    given = [body.grid] if isinstance(body.grid, str) else body.grid
    if not 1 <= len(given) <= MAX_PUZZLES:
        raise RequestError(f"grid: got {len(given)} puzzles, expected 1 to {MAX_PUZZLES}", "grid")
    if len(given) > capacity:
        raise RequestError(
            f"grid: got {len(given)} puzzles, this server has room for {capacity} at a time", "grid"
        )
    steps = len(given) * params.rollouts * params.max_steps
    if steps > MAX_CALL_STEPS:
        raise RequestError(
            f"max_steps: got {len(given)} puzzles of {params.rollouts} x {params.max_steps} steps, "
            f"expected at most {MAX_CALL_STEPS} in a call",
            "max_steps",
        )
    return given


def chosen(named: str | None, info: SolverInfo) -> str:
    """Return the solver that a body means.

    Raises:
        RequestError: it names none, of several.
        ModelNotFoundError: there is none of that name.
    """
    if named is None:
        if len(info.models) > 1:
            raise RequestError(f"model: missing, expected one of {', '.join(info.models)}", "model")
        return next(iter(info.models))
    if named not in info.models:
        raise ModelNotFoundError(named, *info.models)
    return named
