"""Several runs of a puzzle: their noise is the contract's, and the choice has an order."""

from __future__ import annotations

import hashlib
from itertools import permutations

import numpy as np
import pytest
from scripted_solvers import answer, puzzles

from detinfer.kernels import reference_sampling
from detinfer.kernels.constants import NOISE_CENTRE, NOISE_UNIT
from detinfer.kernels.cpu.latent_noise import add_noise
from detinfer.recursive.params import SolveParams
from detinfer.recursive.run import Job
from detinfer.testing import assert_same_bits, rounded_normal, same_bits

CASES = [(0, 1, 1), (7, 3, 16), (2**64 - 1, 63, 1024), (1 << 32, 1, 1)]


def noisy(z, sigma, seed, rollout, step):
    out = z.copy()
    key = (np.uint64(one) for one in (seed, rollout, step))
    add_noise(out.reshape(-1), *key, np.float32(sigma))
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("sigma", [0.3, 1e-42, 100.0])
def test_noise_is_the_contracts(case, sigma):
    z = rounded_normal(np.random.default_rng(0), (9, 37))
    expected = reference_sampling.add_latent_noise(z, sigma, *case)
    assert_same_bits(noisy(z, sigma, *case), expected)
    # A compiler that contracts the product and the sum would be found.
    counts = reference_sampling.latent_noise(*case, z.size).reshape(z.shape).astype(np.float64)
    scale = np.float64(np.float32(sigma) * np.float32(NOISE_UNIT))
    assert sigma < 0.1 or not same_bits((z + counts * scale).astype(np.float32), expected)


def test_every_part_of_the_key_counts():
    z = np.zeros(64, np.float32)
    found = {noisy(z, 1.0, *case).tobytes() for case in [*CASES, (0, 1, 2), (0, 2, 1), (1, 1, 1)]}
    assert len(found) == len(CASES) + 3


def test_noise_is_centred_and_of_deviation_one():
    noise = noisy(np.zeros(20_000, np.float32), 1.0, 5, 1, 1)
    assert abs(noise.mean()) < 5 / 20_000**0.5
    assert abs(noise.std() - 1) < 5 / (2 * 20_000) ** 0.5
    assert np.abs(noise).max() <= NOISE_CENTRE * np.float32(NOISE_UNIT)
    within = (np.abs(noise) < 1).mean()
    assert abs(within - 0.6827) < 0.02


[PUZZLE] = puzzles("sudoku4", 1)
RIGHT = answer(PUZZLE)
EMPTY = int(np.flatnonzero(PUZZLE.board == 0)[0])
WRONG = RIGHT.copy()
WRONG[EMPTY] = WRONG[EMPTY] % 4 + 1
STATE = np.zeros((1, 1), np.float32)


def job(*runs):
    """Of runs of one step, each with a grid and a q."""
    params = SolveParams(max_steps=1, halt="fixed", rollouts=len(runs), noise=0.3)
    made = Job("a", PUZZLE, params, b"first")
    for grid, q in runs:
        made.begin().advance(grid, np.float32(q), STATE, STATE)
    return made


@pytest.mark.parametrize(
    ("runs", "chosen", "status"),
    [
        ([(WRONG, 9), (RIGHT, -9), (WRONG, 8)], 1, "solved"),
        ([(RIGHT, 1), (WRONG, 9), (RIGHT, 2)], 2, "solved"),
        ([(RIGHT, 1), (RIGHT, 1)], 0, "solved"),
        ([(WRONG, 1), (RIGHT, 0.0), (RIGHT, -0.0)], 1, "solved"),
        ([(WRONG, 1), (WRONG, 2), (WRONG, 2)], 1, "unsolved"),
    ],
)
def test_right_first_then_the_highest_q_then_the_first(runs, chosen, status):
    solution = job(*runs).solution()
    assert (solution.rollout, solution.status) == (chosen, status)
    assert solution.grid == PUZZLE.task.render(runs[chosen][0])


def test_the_digest_is_of_all_runs_in_their_order():
    runs = [(WRONG, 1), (RIGHT, 2), (RIGHT, 3)]
    made = job(*runs)
    links = b"".join(run.link for run in made.runs)
    assert made.solution().digest == hashlib.sha256(links).hexdigest()
    assert len({job(*order).solution().digest for order in permutations(runs)}) == 6


def test_the_first_failure_by_number_is_told_whichever_came_first():
    told = []
    for order in ((1, 2), (2, 1)):
        made = job((RIGHT, 1), (RIGHT, 2), (RIGHT, 3))
        for at in order:
            made.runs[at].failed = True
        told.append(made.solution())
    assert told[0] == told[1]
    assert (told[0].status, told[0].rollout) == ("error", 1)
