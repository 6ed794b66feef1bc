"""Random tensors in GGUF's block formats."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detinfer.kernels.constants import BLOCK_FORMATS

FORMATS = sorted(BLOCK_FORMATS)
# Where a block has binary16 numbers.
SCALES = dict.fromkeys(("Q4_0", "Q5_0", "Q8_0"), (0,))
SCALES |= dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))
SCALES["Q6_K"] = (208,)


def random_blocks(rng: np.random.Generator, name: str, n: int, k: int) -> npt.NDArray[np.uint8]:
    """Rows of a tensor of any bits, its scales finite: zeros of both signs and subnormals too."""
    values, size = BLOCK_FORMATS[name]
    raw = rng.integers(0, 256, (n, k // values, size), dtype=np.uint8)
    for at in SCALES[name]:
        scales = (rng.standard_normal(raw.shape[:2]) * 0.05).astype(np.float16)
        special = rng.choice(np.array([0, -0.0, 6e-8, -6e-8, 1e-5], np.float16), scales.shape)
        scales = np.where(rng.random(scales.shape) < 0.1, special, scales)
        raw[..., at : at + 2] = scales[..., None].view(np.uint8)
    return raw.reshape(n, -1)


def extreme_blocks(name: str, n: int, k: int, fill: int) -> npt.NDArray[np.uint8]:
    """Rows whose integers all have the bits of ``fill``, with scales of one."""
    values, size = BLOCK_FORMATS[name]
    raw = np.full((n, k // values, size), fill, np.uint8)
    for at in SCALES[name]:
        raw[..., at : at + 2] = np.ones(1, np.float16).view(np.uint8)
    return raw.reshape(n, -1)
