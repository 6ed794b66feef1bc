"""Error bounds of the elementary functions: the table in docs/arithmetic.md, rule 4."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

from detinfer.kernels import constants, reference
from detinfer.testing import assert_same_bits

F32 = np.float32
SMALLEST_NORMAL = 2.0**-126


def dense_sample() -> np.ndarray:
    """Finite binary32 numbers: evenly over all bit patterns, and over the ranges that matter."""
    patterns = np.arange(0, 2**32, 19997, dtype=np.uint64).astype(np.uint32).view(F32)
    rng = np.random.default_rng(0)
    ranges = [rng.uniform(-width, width, 100_000).astype(F32) for width in (1, 4, 20, 100)]
    sample = np.concatenate([patterns, *ranges])
    return sample[np.isfinite(sample)]


def torch64(function):
    return lambda x: function(torch.from_numpy(x)).numpy()


_erfc = torch64(torch.special.erfc)

# Each in binary64, without the cancellation of the contract's own formula.
BINARY64 = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": torch64(torch.special.erf),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-abs(x))),
    "gelu": lambda x: 0.5 * x * _erfc(-x / np.sqrt(2)),
    "gelu_tanh": lambda x: x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def _mp_gelu_tanh(x):
    u = mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)
    return x / (1 + mpmath.exp(-2 * u))


FIFTY_DIGITS = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "tanh": mpmath.tanh,
    "erf": mpmath.erf,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "gelu_tanh": _mp_gelu_tanh,
}


def ulp(y: np.ndarray) -> np.ndarray:
    """Spacing of binary32 at y."""
    return np.ldexp(1.0, np.frexp(np.maximum(abs(y), SMALLEST_NORMAL))[1] - 24)


def everywhere(x, y):
    return np.ones(len(x), bool)


def normal(x, y):
    return abs(y) >= SMALLEST_NORMAL


def exp_in_range(x, y):
    return (x >= -constants.EXP_HIGH) & normal(x, y)


def not_negative(x, y):
    return (x >= 0) & normal(x, y)


def negative(x, y):
    return x < 0


BOUNDS = [
    ("exp", "ulp", 1.1, normal),
    ("log", "ulp", 0.9, everywhere),
    ("tanh", "ulp", 1.4, everywhere),
    ("erf", "ulp", 2.5, normal),
    ("sigmoid", "ulp", 2.6, exp_in_range),
    ("silu", "ulp", 2.5, exp_in_range),
    ("softplus", "ulp", 2.1, not_negative),
    ("softplus", "absolute", 1e-7, negative),
    ("gelu", "ulp", 2.2, not_negative),
    ("gelu", "absolute", 1.1e-7, negative),
    ("gelu_tanh", "ulp", 1.9, not_negative),
    ("gelu_tanh", "absolute", 9e-8, negative),
]


@pytest.fixture(scope="module")
def measured():
    """Per function: inputs, our results and exact results, all in binary64."""
    sample = dense_sample()
    results = {}
    for name, exact in BINARY64.items():
        x = sample[sample > 0] if name == "log" else sample
        with np.errstate(all="ignore"):
            truth = exact(x.astype(np.float64))
            finite = np.isfinite(truth.astype(F32))
        got = reference.ACTIVATIONS[name](x)
        assert np.isfinite(got[finite]).all(), name
        results[name] = x[finite].astype(np.float64), got[finite].astype(np.float64), truth[finite]
    return results


@pytest.mark.parametrize(("name", "unit", "bound", "where"), BOUNDS)
def test_error_stays_within_the_documented_bound(measured, name, unit, bound, where):
    x, got, truth = (column[where(*measured[name][::2])] for column in measured[name])
    scale = ulp(truth) if unit == "ulp" else np.ones(len(truth))
    error = abs(got - truth) / scale
    assert len(error) > 10_000
    assert error.max() <= bound
    # A bound far above what is seen would not notice a wrong coefficient.
    assert error.max() >= bound / 2

    # The binary64 yardstick is itself right where it matters: at the worst points.
    worst = np.argsort(error)[-20:]
    with mpmath.workdps(50):
        for i in worst:
            exact = FIFTY_DIGITS[name](mpmath.mpf(float(x[i])))
            error_50 = float(abs(mpmath.mpf(float(got[i])) - exact)) / scale[i]
            assert error_50 == pytest.approx(error[i], rel=1e-3)


def test_a_wrong_coefficient_breaks_the_bound(monkeypatch, measured):
    x, _, truth = (column[normal(*measured["exp"][::2])] for column in measured["exp"])
    monkeypatch.setattr(constants, "EXP", (*constants.EXP[:-1], constants.EXP[-1] + 2**-20))
    error = abs(reference.exp32(x).astype(np.float64) - truth) / ulp(truth)
    assert error.max() > 1.1


def test_exact_points():
    assert_same_bits(reference.exp32([0.0, -0.0]), np.ones(2, F32))
    assert_same_bits(reference.log32([1.0]), np.zeros(1, F32))
    assert_same_bits(reference.tanh32([0.0, 20.0, -20.0]), np.array([0, 1, -1], F32))
    assert_same_bits(reference.erf32([0.0, 4.0, -9.0]), np.array([0, 1, -1], F32))
    assert_same_bits(reference.sigmoid([0.0, 200.0, -200.0]), np.array([0.5, 1, 0], F32))
    assert_same_bits(reference.silu([0.0, 200.0, -200.0]), np.array([0, 200, -0.0], F32))
    assert_same_bits(reference.softplus([21.0, -200.0]), np.array([21, 0], F32))


def test_exp_never_gives_a_subnormal():
    low = F32(constants.EXP_LOW)
    around = np.arange(-1000, 1000) + int(low.view(np.int32))
    results = reference.exp32(around.astype(np.int32).view(F32))
    assert set(results >= F32(SMALLEST_NORMAL)) == {True, False}
    assert (results[results < F32(SMALLEST_NORMAL)].view(np.uint32) == 0).all()


@pytest.mark.parametrize("name", sorted(reference.ACTIVATIONS))
def test_nan_gives_nan(name):
    assert np.isnan(reference.ACTIVATIONS[name]([np.nan, -np.nan])).all()


def test_infinities():
    both = np.array([np.inf, -np.inf], F32)
    assert_same_bits(reference.exp32(both), np.array([np.inf, 0], F32))
    assert_same_bits(reference.log32(both), np.array([np.inf, np.nan], F32))
    assert_same_bits(reference.log32([0.0, -0.0]), np.array([-np.inf, -np.inf], F32))
    for function in (reference.tanh32, reference.erf32):
        assert_same_bits(function(both), np.array([1, -1], F32))
    assert_same_bits(reference.sigmoid(both), np.array([1, 0], F32))
    assert_same_bits(reference.softplus(both), np.array([np.inf, 0], F32))
