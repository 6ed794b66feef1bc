"""Random integers that puzzles are made of: a counter-based stream for each (seed, index)."""

from __future__ import annotations

import numpy as np

from detinfer.kernels import constants as c
from detinfer.kernels.cpu.jit import kernel

_GAMMA, _MUL1, _MUL2 = (
    np.uint64(one) for one in (c.SPLITMIX_GAMMA, c.SPLITMIX_MUL1, c.SPLITMIX_MUL2)
)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


@kernel
def _mix(z):
    z = (z ^ (z >> _30)) * _MUL1
    z = (z ^ (z >> _27)) * _MUL2
    return z ^ (z >> _31)


@kernel
def stream(seed, index):
    """Return the state of the stream of one puzzle. [1] uint64"""
    state = np.empty(1, np.uint64)
    state[0] = _mix(_mix(np.uint64(seed) + _GAMMA) + np.uint64(index))
    return state


@kernel
def draw(state, below):
    """Return an integer of [0, below), by the stream's next 64 bits."""
    state[0] += _GAMMA
    return np.int64((_mix(state[0]) >> np.uint64(32)) * np.uint64(below) >> np.uint64(32))


@kernel
def shuffle(state, items):
    """Permute ``items`` in place."""
    for i in range(items.size - 1, 0, -1):
        j = draw(state, i + 1)
        items[i], items[j] = items[j], items[i]
