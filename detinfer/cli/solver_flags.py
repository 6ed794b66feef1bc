"""``--solver``: of ``serve``, which serves solvers, and of ``check``, which checks one."""

from __future__ import annotations

import argparse

from detinfer.config import EngineConfig
from detinfer.engine.solver_config import SolverConfig
from detinfer.errors import ConfigError
from detinfer.folders import check_folders

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


def add_checked_solver(parser: argparse.ArgumentParser) -> None:
    """Add the flag of ``check``."""
    parser.add_argument(
        "--solver",
        metavar="NAME|FILE",
        help=f"check {_WHAT}; on puzzles of its task, or on those of --prompt; with --url one that "
        "the server has, by its name",
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


def check_solver_flags(args: argparse.Namespace) -> None:
    """Refuse what a check of a solver has no use for, and a solver of ours that is not there.

    Raises:
        ConfigError: flags that contradict, or a file that is not there.
        ModelLoadError: no model of that name comes with the package.
    """
    for flag, value in (
        ("MODEL", args.model),
        ("--fast-neighbours", args.fast_neighbours or None),
    ):
        if value is not None:
            raise ConfigError(f"{flag}: got it beside --solver, expected one of them")
    if args.url is None:
        SolverConfig((args.solver,))
        check_folders()
