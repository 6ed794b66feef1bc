"""Quantised blocks that are kept as a GGUF file has them: what is known of their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detinfer.kernels.constants import BLOCK_FORMATS

# Where in a block its binary16 numbers begin; all else in it are integers.
_FACTORS = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
_EXPONENT = 0x7C  # in the upper byte of a binary16: all ones for NaN and infinity


def row_bytes(kind: str, values: int) -> int:
    """Bytes of a row of so many values, whole blocks of a format."""
    of_block, size = BLOCK_FORMATS[kind]
    return values // of_block * size


def are_numbers(blocks: npt.NDArray[Any], kind: str) -> bool:
    """Return whether no scale or offset of a block is NaN or infinite.

    Args:
        blocks: rows of blocks, uint8.
        kind: their format.
    """
    size = BLOCK_FORMATS[kind][1]
    upper = blocks.reshape(-1, size)[:, [at + 1 for at in _FACTORS.get(kind, (0,))]]
    return not np.any((upper & _EXPONENT) == _EXPONENT)
