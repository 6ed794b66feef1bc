"""Noise on the latent state of a rollout (docs/arithmetic.md, rule 9b)."""

from __future__ import annotations

import numpy as np

from detinfer.kernels import constants as c
from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.philox import philox

LOW, SIXTEEN = np.uint64(0xFFFF), np.uint64(16)
WORD, HALF, ONE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(1)
CENTRE, UNIT = np.int64(c.NOISE_CENTRE), np.float32(c.NOISE_UNIT)


@kernel
def add_noise(z, seed, rollout, step, sigma):
    """Add noise to a state in place. z [elements] float32; seed, rollout, step uint64."""
    scale = sigma * UNIT
    for element in range(z.size):
        words = philox(np.uint64(element), step, rollout, ONE, seed & WORD, seed >> HALF)
        total = np.int64(0)
        for word in words:
            total += np.int64((word & LOW) + (word >> SIXTEEN))
        z[element] += np.float32(total - CENTRE) * scale
