"""Values rounded to the nearest that quantised blocks can hold: the same bytes on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detinfer.kernels.constants import ZERO_BELOW

QUANTISER_VERSION = 1
"""Of the formulas, docs/arithmetic.md's: raise it when the bytes would differ."""

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
_LARGEST = np.float32(63)  # of a Q4_K block's scale and offset, 6 bits


def quantise(values: Array, kind: str) -> Bytes:
    """Return rows of blocks. values [n, k], k whole blocks -> [n, bytes of a row]

    A value too large for a block's binary16 numbers makes them infinite: see ``are_numbers``.

    Args:
        values: float32.
        kind: Q8_0, Q4_0 or Q4_1, as ggml's reference rounds them, or Q4_K.
    """
    import gguf

    # Else the inverse of a scale may overflow, and what an infinity is cast to is the machine's.
    values = np.where(np.abs(values) < np.float32(ZERO_BELOW), np.float32(0), values)
    with np.errstate(over="ignore", invalid="ignore"):  # too large: refused by its scale
        if kind == "Q4_K":
            return _q4_k(values.reshape(-1, 8, 32)).reshape(len(values), -1)
        blocks: Bytes = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
    return blocks


def _q4_k(x: Array) -> Bytes:
    """Eight blocks of 32 each, whose scales and offsets share two factors. -> [n, 144]"""
    low = np.minimum(x.min(-1), np.float32(0))
    high = np.maximum(x.max(-1), np.float32(0))
    d, sc = _share((high - low) / np.float32(15))
    dmin, mn = _share(-low)
    step = d.astype(np.float32) * sc
    offset = dmin.astype(np.float32) * mn
    lost = step == 0
    u = np.rint((x + offset[..., None]) / np.where(lost, np.float32(1), step)[..., None])
    u[lost] = 0
    u = u.clip(0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    packed = [
        sc[:, :4] | sc[:, 4:] >> 4 << 6,
        mn[:, :4] | mn[:, 4:] >> 4 << 6,
        sc[:, 4:] & 15 | (mn[:, 4:] & 15) << 4,
        (u[:, :, 0] | u[:, :, 1] << 4).reshape(-1, 128),
    ]
    return np.concatenate([d.view(np.uint8), dmin.view(np.uint8), *packed], axis=-1)


def _share(of_block: Array) -> tuple[Any, Bytes]:
    """Return a binary16 factor, and for each block what it is multiplied by: 0 to 63.

    of_block [n, 8], none below 0 -> [n, 1], [n, 8]
    """
    factor = (of_block.max(-1, keepdims=True) / _LARGEST).astype("<f2")
    wide = factor.astype(np.float32)
    wide[wide == 0] = 1  # all of them are next to nothing
    return factor, np.rint(of_block / wide).clip(0, _LARGEST).astype(np.uint8)
