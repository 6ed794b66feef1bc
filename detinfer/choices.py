"""A request for several answers as the requests for one that it amounts to."""

from __future__ import annotations

import secrets
from dataclasses import replace

from detinfer.kernels.elementary import (
    GREEDY_BELOW,
    SPLITMIX_GAMMA,
    SPLITMIX_MUL1,
    SPLITMIX_MUL2,
)
from detinfer.params import SamplingParams


def is_greedy(params: SamplingParams) -> bool:
    """Whether the token is the argmax, with no noise."""
    return params.temperature < GREEDY_BELOW


def choice_seed(seed: int, i: int) -> int:
    """The seed of choice i of a request with n > 1; choice 0 has the request's own.

    The others have the numbers that SplitMix64 started at the seed gives (Steele, Lea and Flood
    2014).
    """
    if i == 0:
        return seed
    word = (1 << 64) - 1
    z = (seed + i * SPLITMIX_GAMMA) & word
    z = (z ^ z >> 30) * SPLITMIX_MUL1 & word
    z = (z ^ z >> 27) * SPLITMIX_MUL2 & word
    return z ^ z >> 31


def noise_seed(params: SamplingParams) -> int | None:
    """The seed a request runs with: its own, or a drawn one if it needs noise and gave none."""
    if params.seed is None and not is_greedy(params):
        return secrets.randbits(53)  # a client may keep its numbers as doubles
    return params.seed


def choices(params: SamplingParams) -> list[SamplingParams]:
    """The ``n`` requests that a request for ``n`` answers amounts to.

    Each has the seed of its choice, and alone gives the same answer.
    """
    if params.n == 1:
        return [params]
    seed = noise_seed(params)
    return [
        replace(params, n=1, seed=None if seed is None else choice_seed(seed, i))
        for i in range(params.n)
    ]
