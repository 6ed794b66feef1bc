"""Shared regions: every item once, no region begun before the one before it is whole."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit, prange

from detinfer.kernels.cpu.team import REGION, done_take, end_of, regions, take, wait
from detinfer.testing import thread_count

ITEMS, STEPS = 7, 300


@njit(parallel=True)
def count(programs, first, done, early):
    """Run the same program ``programs`` times; ``done[s, i]`` counts how often an item was done."""
    for program in prange(programs):
        for step in range(STEPS):
            region = first + step * REGION + end_of(program, programs)
            item = take(region, ITEMS)
            while item < ITEMS:
                if step and done[step - 1].sum() != ITEMS:
                    early[step] += 1
                done[step, item] += 1
                item = done_take(region, ITEMS)
            wait(region, ITEMS)


def run(programs: int) -> tuple[np.ndarray, np.ndarray]:
    team = regions(STEPS)
    done, early = np.zeros((STEPS, ITEMS), np.int64), np.zeros(STEPS, np.int64)
    count(programs, team.ctypes.data, done, early)
    return done, early


# More programs than threads: the last ones come when all is done, and must pass through.
@pytest.mark.parametrize("programs", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_item_is_done_once_and_in_order(programs, threads):
    with thread_count(threads):
        done, early = run(programs)
    assert (done == 1).all()
    assert not early.any()


def test_a_region_that_was_not_reset_does_nothing():
    team = regions(STEPS)
    team[:] = ITEMS
    done, early = np.zeros((STEPS, ITEMS), np.int64), np.zeros(STEPS, np.int64)
    count(1, team.ctypes.data, done, early)
    assert not done.any()
