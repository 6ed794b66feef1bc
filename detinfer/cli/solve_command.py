"""``detinfer solve``: its flags, and what they amount to; nothing heavy until it runs."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from detinfer.cli.flags import integer
from detinfer.folders import check_folders
from detinfer.garbage import uncollected
from detinfer.machine import cpu_threads
from detinfer.recursive import shipped
from detinfer.recursive.params import HALTS, MAX_ROLLOUTS, MAX_STEPS, SolveParams


def add_solve_flags(parser: argparse.ArgumentParser) -> None:
    """Add what to solve, by which model, and every field of ``SolveParams``."""
    defaults = SolveParams()

    def add(flag: str, text: str, **options: Any) -> None:
        default = getattr(defaults, flag.removeprefix("--").replace("-", "_"))
        parser.add_argument(flag, default=default, help=f"{text} (default {default})", **options)

    parser.add_argument(
        "puzzle",
        metavar="PUZZLE",
        help="a board, row by row, with 0 or . where it is empty; or a file of them, or - for "
        "standard input",
    )
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="a model of the package or a .safetensors file; without one, the first that reads "
        "such a board",
    )
    add("--max-steps", "most steps of a run", type=integer(1, MAX_STEPS), metavar="N")
    add("--halt", "when a run ends", choices=HALTS)
    add("--halt-threshold", "what q must be above", type=float, metavar="Q")
    add("--stable-steps", "equal grids, for --halt stable", type=integer(2, MAX_STEPS), metavar="N")
    add("--rollouts", "runs, all but one in disguise", type=integer(1, MAX_ROLLOUTS), metavar="N")
    add("--noise", "on the state, in place of disguises; try 0.3", type=float, metavar="SIGMA")
    add("--seed", "of disguises and noise", type=integer(0, (1 << 64) - 1), metavar="N")
    parser.add_argument("--trace", action="store_true", help="tell of every step")
    parser.add_argument("--json", action="store_true", help="print the whole answers as JSON")
    parser.add_argument("--fast", action="store_true", help="by PyTorch's own kernels")
    parser.add_argument("--threads", type=integer(1), metavar="N", help="default: every core")


def run_solve(args: argparse.Namespace) -> int:
    """Run the command; what shows in a moment is said before anything heavy is imported."""
    params = SolveParams(**{one.name: getattr(args, one.name) for one in fields(SolveParams)})
    cpu_threads(args.threads)
    if args.model is not None and not args.model.endswith(".safetensors"):
        shipped.path(args.model)
    check_folders()
    with uncollected():
        from detinfer.cli.solve import solve
        from detinfer.recursive.solver import Solver

    solver = Solver(args.model, deterministic=not args.fast, threads=args.threads or 0)
    return solve(solver, args.puzzle, params, as_json=args.json)
