"""Values in blocks: the bytes of ggml's own rounding, or of the formula in docs/arithmetic.md."""

from __future__ import annotations

import hashlib

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as Kind

from detinfer.checkpoint.blocks import are_numbers
from detinfer.checkpoint.quantiser import quantise
from detinfer.kernels.reference_packed import rows, unpack

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q4_K")
# Of ``weights()``: rounding that moves is a new QUANTISER_VERSION, not a fix of the test.
DIGESTS = {
    "Q8_0": "c3737d3a7ce39a2bf66589d3369ce9c826d0beaae61746f731f7f2d5f13be1e6",
    "Q4_0": "23173b5817eaf9aa11353be2abe2dc295f4eafcf0e03d054ebddcb6658f2ca25",
    "Q4_1": "d913653e7a567ee4e33e2f4010270674d57b38ed2ceec8b4f2404b11042b7a6e",
    "Q4_K": "f29706d8e69adc3d3eb7e921e0f72b3d3ec9758ca141587ca481f1dfc141aa38",
}


def weights() -> npt.NDArray[np.float32]:
    """Numbers of all sizes, the same in every NumPy: zeros, one sign, next to nothing. [64, 512]"""
    mixed = np.arange(64 * 512).reshape(64, 512) * 2654435761 % 2**32 >> 11
    values = (mixed - 2**20).astype(np.float32)
    values *= np.float32(2) ** -np.arange(18, 82)[:, None].clip(18, 40)
    values[3] = 0
    values[4] = np.abs(values[4])
    values[5] = -np.abs(values[5])
    values[6, ::2] = 0
    values[7] = np.float32(1e-40)
    values[8] = np.float32(0.37)
    return values


def test_q4_k_is_the_formula_of_the_contract() -> None:
    """Written out for one value at a time."""
    f = np.float32
    values = weights()[:12]
    blocks = unpack(quantise(values, "Q4_K"), "Q4_K")
    for row, block in np.ndindex(12, 512 // 32):
        eight = values[row].reshape(-1, 8, 32)[block // 8]
        eight = np.where(np.abs(eight) < f(2.0**-100), f(0), eight)
        scales = [(max(b.max(), f(0)) - min(b.min(), f(0))) / f(15) for b in eight]
        offsets = [-min(b.min(), f(0)) for b in eight]
        d, dmin = np.float16(max(scales) / f(63)), np.float16(max(offsets) / f(63))
        sc = min(np.rint(scales[block % 8] / f(d)), f(63)) if d else f(0)
        mn = min(np.rint(offsets[block % 8] / f(dmin)), f(63)) if dmin else f(0)
        step, offset = f(d) * sc, f(dmin) * mn
        assert (blocks.d[row, block], blocks.m[row, block]) == (step, -offset)
        for x, u in zip(eight[block % 8], blocks.u[row, block], strict=True):
            assert u == (np.clip(np.rint((x + offset) / step), 0, 15) if step else 0)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_other_formats_are_ggmls_own(kind: str) -> None:
    values = weights()
    values[7] = 0  # theirs divides by what is next to nothing
    assert np.array_equal(quantise(values, kind), gguf.quantize(values, Kind[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_do_not_move(kind: str) -> None:
    assert hashlib.sha256(quantise(weights(), kind)).hexdigest() == DIGESTS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_rounded_alone(kind: str) -> None:
    values = weights()
    whole = quantise(values, kind)
    for row in range(0, len(values), 7):
        assert np.array_equal(quantise(values[row : row + 1], kind), whole[row : row + 1])
    moved = values.copy()
    moved[10, 100] *= np.float32(-1.5)
    assert not np.array_equal(quantise(moved, kind)[10], whole[10])


@pytest.mark.parametrize("kind", KINDS)
def test_what_blocks_stand_for_is_near(kind: str) -> None:
    """Within half a step, and what rounding its scales adds (to 11 bits, or to half of 2^-24)."""
    values = weights()
    found = rows(unpack(quantise(values, kind), kind)).reshape(-1, 8, 32)
    blocks = values.reshape(-1, 8, 32)
    low, high = blocks.min(-1).clip(None, 0), blocks.max(-1).clip(0)
    largest = np.maximum(-low, high)
    if kind == "Q4_K":
        scale, offset = ((one.max(-1, keepdims=True)) for one in ((high - low) / 15, -low))
        most = (high - low) / 30 + 15 * scale / 126 + offset / 126  # 6 bits of the largest of eight
        unit, most = 63 * 15 + 63, 1.001 * most
    else:
        step = {"Q8_0": largest / 127, "Q4_0": largest / 8, "Q4_1": (high - low) / 15}[kind]
        most = step * (1 if kind == "Q4_0" else 0.5)  # 8 steps up are one too many
        unit, most = 128, most + 2.0**-11 * largest
    error = np.abs(found - blocks).max(-1)
    assert (error <= most + unit * 2.0**-25).all()
    assert not found[6:8].any()
    assert not found[14:16].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [1e8, -1e8, 3e38, -np.inf])
def test_a_value_too_large_makes_a_scale_infinite(kind: str, value: float) -> None:
    values = weights()[:2]
    values[1, 300] = value
    assert are_numbers(quantise(weights()[:2], kind), kind)
    assert not are_numbers(quantise(values, kind), kind)
