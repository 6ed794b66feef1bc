"""Digests of solves by the models of the package, under each of their fingerprints.

    python tests/support/golden_solves.py

adds what is new to the record. What is in it is never written again: digests move with weights or
the contract's version, and so with the fingerprint, alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from detinfer import Solver
from detinfer.recursive import shipped
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.params import SolveParams
from detinfer.recursive.training.data import TEST

FILE = Path(__file__).parents[1] / "recursive" / "golden_solves.json"
PARAMS = {
    "verified": SolveParams(),
    "rollouts": SolveParams(max_steps=4, rollouts=3, noise=0.3, seed=(1 << 64) - 5),
    "disguises": SolveParams(max_steps=4, rollouts=3, seed=(1 << 64) - 5),
}

Record = dict[str, dict[str, str]]


def fingerprint(name: str) -> str:
    return RecursiveModel.load(name).system_fingerprint


def digests(name: str, **settings: int) -> dict[str, str]:
    """Three boards together, solved in every way."""
    solver = Solver(name, **settings)
    task = RecursiveModel.load(name).task
    boards = [task.render(board) for board in task.generate(TEST, 0, 3).boards]
    return {
        f"{way}: {solution.puzzle}": solution.digest
        for way, params in PARAMS.items()
        for solution in solver.solve(boards, params)
    }


def record() -> Record:
    found: Record = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def main() -> None:
    known = record()
    for name in shipped.names():
        key = f"{name} {fingerprint(name)}"
        known[key] = digests(name) | known.get(key, {})
    FILE.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
