"""The model of the tensor core against sums that an H200 made (``linear``, before any rounding).

64 products each, of rows that are normal, scaled, cancelling, subnormal, zero, infinite and NaN,
some with zeros and subnormals strewn in; a third of the bfloat16 weights are tiny.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detinfer.kernels import reference_native
from detinfer.kernels.reference import round_to

RECORDED = np.load(Path(__file__).with_name("sums_of_an_h200.npz"))


def widened(kind: str, name: str) -> np.ndarray:
    bits = RECORDED[f"{kind}.{name}"]
    if kind == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def differing(kind: str, core: reference_native.TensorCore) -> int:
    x, w, sums = widened(kind, "x"), widened(kind, "w"), RECORDED[f"{kind}.sums"]
    ours = reference_native.linear(x, w, None, kind, "float32", core)
    equal = (ours.view(np.int32) == sums.view(np.int32)) | (np.isnan(ours) & np.isnan(sums))
    return int((~equal).sum())


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_the_model_gives_every_bit(kind):
    assert differing(kind, reference_native.HOPPER) == 0


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_another_architectures_model_does_not(kind):
    assert differing(kind, reference_native.AMPERE) > 0


@pytest.mark.parametrize(("kind", "least"), [("bfloat16", 2.0**-126), ("float16", 2.0**-14)])
def test_the_recorded_rows_hold_what_is_hard(kind, least):
    x, sums = widened(kind, "x"), RECORDED[f"{kind}.sums"]
    finite = np.isfinite(x)
    assert (round_to(np.where(finite, x, 0), kind) == np.where(finite, x, 0)).all()
    assert ((x != 0) & (np.abs(x) < least)).sum() > 100
    assert np.isnan(sums).any()
    assert np.isinf(x).any()
