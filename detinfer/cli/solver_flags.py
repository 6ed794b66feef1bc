"""``--solver`` of ``serve``, which serves solvers."""

from __future__ import annotations

import argparse

from detinfer.config import EngineConfig
from detinfer.engine.solver_config import SolverConfig

_WHAT = "a tiny recursive model: one that comes with the package, or a .safetensors file"


def add_served_solvers(parser: argparse.ArgumentParser) -> None:
    """Add the flag of ``serve``."""
    parser.add_argument(
        "--solver",
        dest="solvers",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help=f"serve at /v1/solve {_WHAT}; may be repeated; beside MODEL, or alone, without any "
        "language model, where no MODEL is given",
    )


def solver_config(args: argparse.Namespace, engine: EngineConfig) -> SolverConfig | None:
    """Return the settings of what ``serve`` serves beside or without a language model.

    Raises:
        ConfigError: a file that is not there, or two solvers of one name.
        ModelLoadError: no model of that name comes with the package.
    """
    if not args.solvers:
        return None
    return SolverConfig(
        tuple(args.solvers), engine.threads, engine.default_deterministic, engine.allow_fast
    )
