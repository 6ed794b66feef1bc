"""Five hundred puzzles, alone and in crowds: one digest each, and one step to halt at."""

from __future__ import annotations

import os
import subprocess
import sys

import many_solves
import pytest
from many_solves import CASES, crowded, digest_of, models
from solver_loads import alone, together


@pytest.fixture(scope="module")
def expected():
    return alone(models(threads=1), CASES)


@pytest.mark.parametrize(("threads", "most"), [(1, 4), (2, 40)])
def test_each_has_one_digest(expected, threads, most):
    assert crowded(threads, most) == expected
    assert len({one.digest for one in expected}) == len(CASES)
    assert len({one.steps for one in expected}) > 4


def test_three_threads_on_any_number_of_cores(expected):
    command = [sys.executable, many_solves.__file__, "3"]
    environment = os.environ | {"NUMBA_NUM_THREADS": "3"}
    told = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert told.stdout.strip() == digest_of(expected)


def test_of_kernels_that_follow_the_batch_it_is_found():
    some, stock = CASES[:50], models(threads=1, deterministic=False)
    assert together(stock, some, seed=1, most=40) != alone(stock, some)
