"""Correctly rounded cos and sin of rotary angles, without libm or a SIMD library.

``numpy.cos`` and ``torch.cos`` differ between instruction sets, so they cannot fill a table that is
part of the arithmetic contract (rule 5). Here only IEEE basic operations in binary64 are used,
which every machine rounds alike; the few values that lie too near a rounding boundary of binary32
to be decided in binary64 are computed by mpmath.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import mpmath
import numpy as np
import numpy.typing as npt
import torch

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

# pi/2 = C1 + C2 + C3; C1 and C2 have 33 significant bits, so their products with a quarter-turn
# count below 2^20 are exact, and what C3 leaves out is below 2^-122.
_C1 = float.fromhex("0x1.921fb544p+0")
_C2 = float.fromhex("0x1.0b4611a6p-34")
_C3 = float.fromhex("0x1.3198a2e037073p-69")
_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
_MAX_ANGLE = float(1 << 20)
MAX_POSITIONS = 1 << 20  # the fastest frequency turns by 1 a position

# Relative; the evaluation below errs by less than a quarter of it.
_ERROR_BOUND = 2.0**-49
_SIN = [(-1) ** k / math.factorial(2 * k + 1) for k in range(8, 0, -1)]
_COS = [(-1) ** k / math.factorial(2 * k) for k in range(8, 1, -1)]
_BLOCK = 1 << 14  # angles at a time, so that temporaries stay in the cache


@dataclass(frozen=True)
class RopeTable:
    """cos and sin by absolute position, times the attention factor.

    Attributes:
        inv_freq: binary32 inverse frequencies. [F]
        attention_factor: binary32 factor already multiplied into both tables (1.0 for none).
        cos: [positions, F] float32
        sin: [positions, F] float32
    """

    inv_freq: Float32Array
    attention_factor: float
    cos: torch.Tensor
    sin: torch.Tensor

    def to(self, device: torch.device) -> RopeTable:
        """Return the same table on a device."""
        return replace(self, cos=self.cos.to(device), sin=self.sin.to(device))


def build_rope_table(
    inv_freq: Float32Array, positions: int, attention_factor: float = 1.0
) -> RopeTable:
    """Tables for positions 0 .. positions - 1.

    The angle is the binary32 product position · inv_freq, as in Hugging Face's code; its cos and
    sin are correctly rounded to binary32 and then multiplied by the factor (one operation).

    Raises:
        ValueError: an angle is 2^20 or more.
    """
    index = np.arange(positions, dtype=np.float32)
    angles = index[:, None] * inv_freq[None, :]
    cos, sin = cos_sin(angles)
    factor = np.float32(attention_factor)
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return RopeTable(inv_freq, float(factor), torch.from_numpy(cos), torch.from_numpy(sin))


def cos_sin(angles: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Correctly rounded (cos, sin) of binary32 angles in [0, 2^20).

    Raises:
        ValueError: an angle is negative, 2^20 or more, or not finite.
    """
    if angles.size and not (angles.min() >= 0 and angles.max() < _MAX_ANGLE):
        raise ValueError(
            f"angles: got {angles.min()}..{angles.max()}, expected 0 <= angle < {_MAX_ANGLE:.0f}"
        )
    flat = np.ascontiguousarray(angles, dtype=np.float32).reshape(-1)
    cos, sin = np.empty_like(flat), np.empty_like(flat)
    for start in range(0, flat.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        cos[block], sin[block] = _cos_sin_block(flat[block])
    return cos.reshape(angles.shape), sin.reshape(angles.shape)


def round_to_binary32(value: mpmath.mpf) -> np.float32:
    """Return the binary32 number nearest to an mpmath number of the normal range, ties to even."""
    with mpmath.workprec(24):
        return np.float32(float(+value))


def _cos_sin_block(angles: Float32Array) -> tuple[Float32Array, Float32Array]:
    cos, sin = _evaluate(angles.astype(np.float64))
    return _round(cos, angles, mpmath.cos), _round(sin, angles, mpmath.sin)


def _evaluate(angles: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Cos and sin in binary64, within ``_ERROR_BOUND`` of the exact ones."""
    quarter, high, low = _reduce(angles)
    square = high * high
    sin = high + (high * (square * _horner(_SIN, square)) + low * (1.0 - 0.5 * square))
    cos = 1.0 - (0.5 * square - (square * (square * _horner(_COS, square)) - high * low))

    odd = (quarter & 1) == 1
    cos_of_angle = np.where(odd, sin, cos)
    sin_of_angle = np.where(odd, cos, sin)
    cos_of_angle = np.where(((quarter + 1) & 2) == 2, -cos_of_angle, cos_of_angle)
    sin_of_angle = np.where((quarter & 2) == 2, -sin_of_angle, sin_of_angle)
    return cos_of_angle, sin_of_angle


def _reduce(angles: Float64Array) -> tuple[npt.NDArray[np.int64], Float64Array, Float64Array]:
    """Quarter turns n and angle - n·pi/2 as an unevaluated sum of two binary64 numbers."""
    n = np.rint(angles * _TWO_OVER_PI)
    first = angles - n * _C1  # exact: multiples of 2^-32 below 1 (or n = 0)
    high, error = _two_difference(first, n * _C2)
    total, rest = _two_difference(high, -(error - n * _C3))
    return n.astype(np.int64), total, rest


def _two_difference(a: Float64Array, b: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return a - b as rounded difference and its exact error (Knuth)."""
    difference = a - b
    virtual = difference - a
    return difference, (a - (difference - virtual)) - (b + virtual)


def _horner(coefficients: list[float], x: Float64Array) -> Float64Array:
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total *= x
        total += coefficient
    return total


def _round(
    value: Float64Array, angles: Float32Array, exact: mpmath.ctx_mp.MPContext
) -> Float32Array:
    """Binary32 rounding of approximations, exact where their error could change it."""
    margin = np.abs(value) * _ERROR_BOUND
    rounded = (value - margin).astype(np.float32)
    for i in np.flatnonzero(rounded != (value + margin).astype(np.float32)):
        with mpmath.workprec(200):
            rounded[i] = round_to_binary32(exact(mpmath.mpf(float(angles[i]))))
    return rounded
