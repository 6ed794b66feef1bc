"""Rule 1q's oracle: against gguf's own reading of the formats, and against float64."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from packed_samples import FORMATS, random_blocks

from detinfer.kernels import reference_packed as reference
from detinfer.kernels.constants import BLOCK_FORMATS, GROUP, ZERO_BELOW
from detinfer.testing import assert_same_bits, same_bits

F32 = np.float32
UNIT = 2.0**-24  # half an ulp of 1


def test_block_sizes_are_ggufs():
    for name, sizes in BLOCK_FORMATS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == sizes


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_what_gguf_dequantises_bit_for_bit(name):
    raw = random_blocks(np.random.default_rng(0), name, 40, 1024)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    weight = reference.unpack(raw, name)
    assert_same_bits(reference.rows(weight), expected, name)
    assert_same_bits(reference.rows(weight, np.array([39, 0, 39])), expected[[39, 0, 39]])
    assert weight.u.min() >= 0
    assert weight.u.max() == 2 ** (8 if name == "Q8_0" else int(name[1])) - 1
    raw[:, -1] ^= 1  # the same comparison tells one bit
    assert not same_bits(reference.rows(reference.unpack(raw, name)), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_scales_are_exact(name):
    """A product of the format's own formula never rounds, so there is one reading of d and m."""
    weight = reference.unpack(random_blocks(np.random.default_rng(1), name, 40, 1024), name)
    for scales in (weight.d, weight.m):
        if scales is not None:
            mantissa = np.frexp(scales.astype(np.float64))[0] * 2.0**20
            np.testing.assert_array_equal(mantissa, np.rint(mantissa))


def normal(rng, shape):
    """Rows whose groups differ in size by far."""
    x = rng.standard_normal(shape)
    return (x * 10.0 ** rng.uniform(-4, 4, (shape[0], shape[1] // GROUP)).repeat(GROUP, 1)).astype(
        F32
    )


@pytest.mark.parametrize("k", [256, 512, 768, 1536])
@pytest.mark.parametrize("name", FORMATS)
def test_linear_is_as_near_float64_as_its_roundings_allow(name, k):
    rng = np.random.default_rng(k)
    x, bias = normal(rng, (6, k)), rng.standard_normal(20).astype(F32)
    weight = reference.unpack(random_blocks(rng, name, 20, k), name)
    got = reference.linear(x, weight, bias).astype(np.float64)

    # Every term once exactly; each is multiplied by at most two rounded factors, then added by at
    # most one fma a block and format's part, three levels of the tree, and the bias.
    q, dx = reference.quantise(x)
    blocks = weight.u.shape[1]
    near = (q * dx[..., None].astype(np.float64)).reshape(6, blocks, -1)
    centred = (weight.u - weight.z) * weight.d[..., None].astype(np.float64)
    terms = np.einsum("mbi,nbi->mnb", near, centred)
    sizes = np.abs(terms)
    if weight.m is not None:
        offsets = near.sum(-1)[:, None] * weight.m.astype(np.float64)
        terms, sizes = terms + offsets, sizes + np.abs(offsets)
    exact = terms.sum(-1) + bias
    steps = 2 * blocks + 6
    bound = steps * UNIT / (1 - steps * UNIT) * (sizes.sum(-1) + np.abs(bias))
    assert (np.abs(got - exact) <= bound).all()

    # And q is half a step from x, but for the roundings of 127 / a and of its product.
    true = x.astype(np.float64) @ reference.rows(weight).astype(np.float64).T + bias
    steps_of_x = (dx.astype(np.float64) * (0.5 + 2.0**-14)).repeat(GROUP, 1)
    bound += steps_of_x @ np.abs(reference.rows(weight).astype(np.float64)).T
    assert (np.abs(got - true) <= bound).all()
    assert np.abs(got - true).max() > 2.0**-10 * bound.max()  # the bound is no wide one


def test_a_group_keeps_its_largest_value_and_its_signs():
    x = normal(np.random.default_rng(2), (50, 256))
    q, dx = reference.quantise(x)
    groups = x.reshape(50, -1, GROUP).astype(np.float64)
    assert (np.abs(q).max(-1) == 127).all()
    largest = np.abs(groups).max(-1)
    assert (np.abs(dx - largest / 127) <= UNIT * largest / 127).all()
    assert (np.abs(groups - q * dx[..., None].astype(np.float64)) <= dx[..., None] * 0.5001).all()
    minus, same = reference.quantise(-x)
    np.testing.assert_array_equal(minus, -q)
    assert_same_bits(same, dx)
    scaled, eightfold = reference.quantise(x * F32(8))
    np.testing.assert_array_equal(scaled, q)
    assert_same_bits(eightfold, dx * F32(8))


def test_halves_round_to_even():
    x = np.zeros((1, GROUP), F32)
    x[0, :6] = 127, 0.5, 1.5, -2.5, 0.50001, -126.5
    q, dx = reference.quantise(x)
    assert q[0, 0, :6].tolist() == [127, 0, 2, -2, 1, -126]
    assert dx[0, 0] == 1


def test_a_group_at_an_edge_of_binary32():
    smallest, largest = F32(ZERO_BELOW), np.finfo(F32).max
    x = np.zeros((6, GROUP), F32)
    x[:, 3] = 0, np.nextafter(smallest, F32(0)), smallest, largest, -np.inf, np.nan
    x[2:, 5] = -x[2, 3], -largest, 1, 1
    q, dx = reference.quantise(x)
    assert_same_bits(dx[:2], np.zeros((2, 1), F32))
    assert_same_bits(dx[2:4], np.array([[smallest / F32(127)], [largest / F32(127)]]))
    assert np.isnan(dx[4:]).all()
    assert q[:, 0, 3].tolist() == [0, 0, 127, 127, 0, 0]
    assert q[:, 0, 5].tolist() == [0, 0, -127, -127, 0, 0]


@pytest.mark.parametrize("name", FORMATS)
def test_integers_are_exact_in_binary32_at_their_largest(name):
    weight = reference.unpack(np.zeros((1, BLOCK_FORMATS[name][1]), np.uint8), name)
    largest = 2 ** (8 if name == "Q8_0" else int(name[1])) - 1
    assert max(largest - weight.z, weight.z, largest) * 127 * GROUP < 2**24


def test_a_value_that_is_not_finite_ends_in_nan_in_its_row_alone():
    rng = np.random.default_rng(3)
    for name in FORMATS:
        weight = reference.unpack(random_blocks(rng, name, 20, 512), name)
        x = normal(rng, (3, 512))
        clean = reference.linear(x, weight)
        x[1, 77] = np.inf
        got = reference.linear(x, weight)
        assert np.isnan(got[1]).all()
        assert_same_bits(got[[0, 2]], clean[[0, 2]], name)
