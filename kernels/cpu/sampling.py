"""Noise and weights of the sampler (docs/arithmetic.md, rule 7)."""

from __future__ import annotations

import numpy as np

from detinfer.kernels import constants as c
from detinfer.kernels.cpu.elementary import exp32, log32
from detinfer.kernels.cpu.jit import kernel

M0, M1 = np.uint64(c.PHILOX_M0), np.uint64(c.PHILOX_M1)
W0, W1 = np.uint64(c.PHILOX_W0), np.uint64(c.PHILOX_W1)
WORD, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
ONE, TWO, THREE, NINE = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(9)
UNIT = 2.0**-24

# The noise lies in (-2.82, 16.64): whoever trails by more than this cannot win, and needs none.
NOISE_MAX = np.float32(17.0)
LEADERS = np.float32(4.0)  # those this close to the top draw first: one of them usually wins


@kernel
def philox(c0, c1, c2, c3, k0, k1):
    """Philox 4x32-10 on words held in uint64."""
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ k0, p1 & WORD, (p0 >> HALF) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + W0) & WORD, (k1 + W1) & WORD
    return c0, c1, c2, c3


@kernel
def noise_of_word(word):
    """Gumbel noise -log(-log(u)), u the word as a number strictly between 0 and 1."""
    u = np.float32(np.float64((word >> NINE) * TWO + ONE) * UNIT)
    return -log32(-log32(u))


@kernel
def noise(token, seed, position):
    """Noise of one token id at an absolute position."""
    words = philox(
        token >> TWO, position & WORD, position >> HALF, np.uint64(0), seed & WORD, seed >> HALF
    )
    return noise_of_word(words[np.int64(token & THREE)])


@kernel
def gumbel_argmax(x, ids, seed, position):
    """Find the id of the largest x + noise; ties to the lowest. x [K] float32, ids [K] int64."""
    top = x.max()
    best, winner = np.float32(-np.inf), np.int64(-1)
    for leaders in (True, False):
        for i in range(len(x)):
            if (x[i] >= top - LEADERS) != leaders or x[i] + NOISE_MAX < best:
                continue
            value = x[i] + noise(np.uint64(ids[i]), seed, position)
            if value > best or (value == best and ids[i] < winner):
                best, winner = value, ids[i]
    return winner


@kernel
def weights(x):
    """exp(x - max), x in descending order. [K] -> [K] float32."""
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = exp32(x[i] - x[0])
    return out
