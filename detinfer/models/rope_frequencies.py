"""Inverse frequencies of rotary embeddings, correctly rounded from their formulas.

The formulas are those of ``transformers.modeling_rope_utils``, evaluated to 60 digits and rounded
to binary32 once. Types whose frequencies follow the sequence length (``dynamic``, ``longrope``) are
pinned to the model length the engine was started with: Hugging Face takes the longest position in
the batch, so a neighbour would change the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np

from detinfer.models.rope_table import Float32Array, round_to_binary32

_DIGITS = 60


@dataclass(frozen=True)
class RopeSpec:
    """What a rotary embedding's frequencies depend on.

    Attributes:
        params: one entry of the configuration's ``rope_parameters``.
        count: number of frequencies, half the rotated dimensions.
        max_position_embeddings: of the configuration.
        max_model_len: of the engine; what ``dynamic`` and ``longrope`` are pinned to.
    """

    params: Mapping[str, Any]
    count: int
    max_position_embeddings: int
    max_model_len: int

    @property
    def rope_type(self) -> str:
        """Name of the formula."""
        return str(self.params.get("rope_type", "default"))

    @property
    def theta(self) -> mpmath.mpf:
        """Base of the geometric series."""
        return mpmath.mpf(self.params["rope_theta"])


def rope_frequencies(spec: RopeSpec) -> tuple[Float32Array, float]:
    """Inverse frequencies [count] and the attention factor, each rounded to binary32 once.

    Raises:
        KeyError: the type is unknown, or a parameter that its formula needs is missing.
    """
    with mpmath.workdps(_DIGITS):
        values, factor = _FORMULAS[spec.rope_type](spec)
        rounded = [np.float32(0) if v == 0 else round_to_binary32(v) for v in values]
        return np.array(rounded, dtype=np.float32), float(round_to_binary32(mpmath.mpf(factor)))


_Formula = Callable[[RopeSpec], tuple[list[mpmath.mpf], mpmath.mpf]]


def _powers(theta: mpmath.mpf, count: int) -> list[mpmath.mpf]:
    """theta^(-2i/dim) with dim = 2·count."""
    return [theta ** (-mpmath.mpf(i) / count) for i in range(count)]


def _default(spec: RopeSpec) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    return _powers(spec.theta, spec.count), mpmath.mpf(1)


def _linear(spec: RopeSpec) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    factor = mpmath.mpf(spec.params["factor"])
    return [f / factor for f in _powers(spec.theta, spec.count)], mpmath.mpf(1)


def _proportional(spec: RopeSpec) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    factor = mpmath.mpf(spec.params.get("factor", 1.0))
    proportion = spec.params.get("partial_rotary_factor", 1.0)
    rotated = int(proportion * (2 * spec.count) // 2)
    powers = _powers(spec.theta, spec.count)
    return [f / factor if i < rotated else mpmath.mpf(0) for i, f in enumerate(powers)], mpmath.mpf(
        1
    )


def _dynamic(spec: RopeSpec) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    factor = mpmath.mpf(spec.params["factor"])
    trained = spec.max_position_embeddings
    stretch = factor * max(spec.max_model_len, trained) / trained - (factor - 1)
    dim = mpmath.mpf(2 * spec.count)
    return _powers(spec.theta * stretch ** (dim / (dim - 2)), spec.count), mpmath.mpf(1)


def _llama3(spec: RopeSpec) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    factor, low, high, trained = (
        mpmath.mpf(spec.params[name])
        for name in (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
    )

    def scaled(frequency: mpmath.mpf) -> mpmath.mpf:
        wavelength = 2 * mpmath.pi / frequency
        if wavelength < trained / high:
            return frequency
        if wavelength > trained / low:
            return frequency / factor
        smooth = (trained / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency

    return [scaled(f) for f in _powers(spec.theta, spec.count)], mpmath.mpf(1)


def _yarn(spec: RopeSpec) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    params, dim = spec.params, 2 * spec.count
    trained = mpmath.mpf(params["original_max_position_embeddings"])
    factor = params["factor"]
    factor = spec.max_position_embeddings / trained if factor is None else mpmath.mpf(factor)

    def magnitude(scale: mpmath.mpf, weight: float = 1.0) -> mpmath.mpf:
        if scale <= 1:
            return mpmath.mpf(1)
        return mpmath.mpf(1) / 10 * weight * mpmath.log(scale) + 1

    attention = params.get("attention_factor")
    if attention is None:
        weights = (params.get("mscale"), params.get("mscale_all_dim"))
        if weights[0] and weights[1]:
            attention = magnitude(factor, weights[0]) / magnitude(factor, weights[1])
        else:
            attention = magnitude(factor)

    def dimension_of(rotations: float) -> mpmath.mpf:
        turns = trained / (rotations * 2 * mpmath.pi)
        return dim * mpmath.log(turns) / (2 * mpmath.log(spec.theta))

    first = dimension_of(params.get("beta_fast") or 32)
    last = dimension_of(params.get("beta_slow") or 1)
    if params.get("truncate", True):
        first, last = mpmath.floor(first), mpmath.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last = last + mpmath.mpf(1) / 1000

    def blended(i: int, frequency: mpmath.mpf) -> mpmath.mpf:
        interpolated = min(max((i - first) / (last - first), 0), 1)
        return frequency / factor * interpolated + frequency * (1 - interpolated)

    return [blended(i, f) for i, f in enumerate(_powers(spec.theta, spec.count))], attention


def _longrope(spec: RopeSpec) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    params = spec.params
    trained = params["original_max_position_embeddings"]
    divisors = params["long_factor" if spec.max_model_len > trained else "short_factor"]
    attention = params.get("attention_factor")
    if attention is None:
        factor = params.get("factor")
        factor = mpmath.mpf(spec.max_position_embeddings) / trained if factor is None else factor
        attention = (
            mpmath.sqrt(1 + mpmath.log(factor) / mpmath.log(trained))
            if factor > 1
            else mpmath.mpf(1)
        )
    powers = _powers(spec.theta, spec.count)
    return [f / mpmath.mpf(d) for f, d in zip(powers, divisors, strict=True)], attention


_FORMULAS: dict[str, _Formula] = {
    "default": _default,
    "linear": _linear,
    "proportional": _proportional,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
ROPE_TYPES = frozenset(_FORMULAS)
