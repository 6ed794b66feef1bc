"""What solvers are served with, and what their process says: of itself, and of puzzles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detinfer.engine.outputs import Wire
from detinfer.errors import ConfigError, DetinferError
from detinfer.recursive import shipped
from detinfer.recursive.result import Solution, TraceStep

MAX_BATCH = 64  # puzzles in a step: no step of a small model is faster a puzzle than one of so many


@dataclass(frozen=True)
class SolverConfig:
    """Settings of the process that solves.

    Attributes:
        models: names of models that come with the package, or ``.safetensors`` files.
        threads: CPU threads; None is the number of usable cores.
        default_deterministic: what a request gets that does not say.
        allow_fast: whether ``deterministic: false`` may run PyTorch's kernels.

    Raises:
        ConfigError: no model, a file that is not there, or two models of one name.
        ModelLoadError: no model of that name comes with the package.
    """

    models: tuple[str, ...]
    threads: int | None = None
    default_deterministic: bool = True
    allow_fast: bool = True

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("solver: got none, expected a name or a .safetensors file")
        names = [self.name_of(model) for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"solver: got {name!r} more than once, expected different names")

    @staticmethod
    def name_of(model: str) -> str:
        """Return what clients call a model, which must be there."""
        path = Path(model)
        if path.suffix != ".safetensors":
            path = shipped.path(model)
        elif not path.is_file():
            raise ConfigError(f"solver: {model}: no such file")
        return path.stem


@dataclass(frozen=True)
class SolverModel:
    """What a served model says of itself.

    Attributes:
        cells: of a board.
        parameters: numbers among its weights.
        fingerprint: what its bits depend on, by name; its SHA-256 is the end of
            ``system_fingerprint``.
        fast_fingerprint: of answers with ``deterministic: false``; None where they are refused.
        card: how it was trained and what it was measured to do; empty for a file without one.
    """

    name: str
    task: str
    cells: int
    parameters: int
    fingerprint: dict[str, str]
    system_fingerprint: str
    fast_fingerprint: str | None
    card: dict[str, Any]


@dataclass(frozen=True)
class SolverInfo:
    """What the other side of the process boundary needs to know about loaded solvers.

    Attributes:
        models: by name, in the order they were given.
        max_num_seqs: puzzles that are worked at at a time.
    """

    models: dict[str, SolverModel]
    max_num_seqs: int
    allow_fast: bool


@dataclass(slots=True)
class SolveOutput:
    """What a step brought to one puzzle.

    Attributes:
        steps: what it did, if the request asked for a trace.
        end: what came of it; None while it goes on.
    """

    request_id: str
    steps: list[TraceStep]
    end: Solution | DetinferError | None

    def to_wire(self) -> Wire:
        """Return the fields as a plain tuple."""
        return (self.request_id, self.steps, self.end)
