"""Five hundred puzzles, and a few of another task beside them.

    NUMBA_NUM_THREADS=3 python tests/support/many_solves.py 3

prints one digest of all their solutions, solved by so many threads in a crowd: more threads than
there are cores, too.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

from scripted_solvers import puzzles
from solver_loads import Case, together

from detinfer import machine
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.params import SolveParams
from detinfer.recursive.result import Solution

CASES: list[Case] = [
    *(("trm-sudoku6", puzzle, SolveParams()) for puzzle in puzzles("sudoku6", 500)),
    *(("trm-sudoku9", puzzle, SolveParams(max_steps=3)) for puzzle in puzzles("sudoku9", 12)),
]


def models(threads: int, deterministic: bool = True) -> dict[str, RecursiveModel]:
    return {
        name: RecursiveModel.load(name, threads=threads, deterministic=deterministic)
        for name in sorted({name for name, _, _ in CASES})
    }


def crowded(threads: int, most: int) -> list[Solution]:
    return together(models(threads), CASES, seed=most, most=most)


def digest_of(solutions: Iterable[Solution]) -> str:
    told = "".join(f"{one.digest} {one.steps}\n" for one in solutions)
    return hashlib.sha256(told.encode()).hexdigest()


def main() -> None:
    threads = int(sys.argv[1])
    machine.usable_cores = lambda: threads
    print(digest_of(crowded(threads, most=40)))


if __name__ == "__main__":
    main()
