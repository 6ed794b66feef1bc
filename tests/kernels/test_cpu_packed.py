"""The compiled kernels for weights in GGUF blocks: the reference's bits at every shape."""

from __future__ import annotations

import numpy as np
import pytest
from packed_samples import FORMATS, SCALES, extreme_blocks, random_blocks

from detinfer.kernels import reference, reference_packed
from detinfer.kernels.constants import BLOCK_FORMATS
from detinfer.kernels.cpu.packed import linear as packed
from detinfer.kernels.cpu.packed.rows import RECORD
from detinfer.testing import (
    COLUMNS,
    ROWS,
    assert_same_bits,
    guarded_allocations,
    rounded_normal,
    same_bits,
    surrounded,
    thread_count,
    to_torch,
)

F32 = np.float32
# By blocks of a format: one segment, two, four, eight; an odd number of blocks.
DEPTHS = {32: (32, 96, 128, 256, 512, 576, 1536), 256: (256, 512, 768, 1280, 1536)}


def oracle(raw, name, x, bias=None):
    return reference_packed.linear(x, reference_packed.unpack(raw, name), bias)


def linear(weight, x, bias=None):
    """The kernel's result; inputs lie in NaN, outputs and scratch between guard bands."""
    x = surrounded(to_torch(x)).numpy()
    bias = None if bias is None else surrounded(to_torch(bias)).numpy()
    weight.linear(x, bias, np.empty((len(x), weight.n), F32))  # nothing is guarded in a compiler
    with guarded_allocations():
        out = np.empty((len(x), weight.n), F32)
        weight.linear(x, bias, out)
    return out


@pytest.mark.parametrize("name", FORMATS)
def test_linear_equals_the_reference_at_every_depth_and_width(name):
    for k in DEPTHS[BLOCK_FORMATS[name][0]]:
        rng = np.random.default_rng(k)
        raw = random_blocks(rng, name, max(COLUMNS), k)
        x, bias = rounded_normal(rng, (9, k)), rounded_normal(rng, (max(COLUMNS),))
        expected = oracle(raw, name, x, bias)
        for n in COLUMNS:
            weight = packed.pack(raw[:n], name, n, k)
            assert_same_bits(linear(weight, x, bias[:n]), expected[:, :n], f"n={n}, k={k}")


@pytest.mark.parametrize("k", [512, 768])
@pytest.mark.parametrize("name", FORMATS)
def test_linear_equals_the_reference_at_every_row_count(name, k):
    rng = np.random.default_rng(1)
    raw, x = random_blocks(rng, name, 65, k), rounded_normal(rng, (max(ROWS), k))
    expected, weight = oracle(raw, name, x), packed.pack(raw, name, 65, k)
    for m in sorted({*range(1, 71), *ROWS}):
        assert_same_bits(linear(weight, x[:m]), expected[:m], f"{m} rows")


def test_no_row_of_a_large_step_is_lost():
    rng = np.random.default_rng(2)
    raw, x = random_blocks(rng, "Q4_1", 70, 96), rounded_normal(rng, (600, 96))
    expected, weight = oracle(raw, "Q4_1", x), packed.pack(raw, "Q4_1", 70, 96)
    for m in (191, 192, 193, 287, 289, 383, 384, 385, 390, 399, 479, 481, 599, 600):
        assert_same_bits(linear(weight, x[:m]), expected[:m], f"{m} rows")


@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x7F, 0x88, 0x0F])
@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_integers_do_not_saturate(name, fill):
    raw = extreme_blocks(name, 17, 512, fill)
    x = np.full((7, 512), 127, F32)
    x[1], x[2, ::2], x[3, 1::2], x[4, :16], x[5, 1:] = -127, -127, -127, -127, 0
    assert_same_bits(linear(packed.pack(raw, name, 17, 512), x), oracle(raw, name, x))


def test_the_comparison_tells_another_arithmetic():
    rng = np.random.default_rng(3)
    raw, x = random_blocks(rng, "Q4_1", 65, 512), rounded_normal(rng, (9, 512))
    got = linear(packed.pack(raw, "Q4_1", 65, 512), x)
    blocks = reference_packed.unpack(raw, "Q4_1")
    wide = reference.linear(x, reference_packed.rows(blocks))  # rule 1 over the same weight
    np.testing.assert_allclose(got, wide, atol=0.02 * np.abs(wide).max())
    assert not same_bits(got, wide)
    raw[64, 7] ^= 1
    assert not same_bits(got, oracle(raw, "Q4_1", x))


def test_neither_threads_nor_the_way_rows_are_cut_change_bits():
    rng = np.random.default_rng(4)
    for name in ("Q4_1", "Q6_K"):
        raw = random_blocks(rng, name, 520, 768)
        weight, x = packed.pack(raw, name, 520, 768), rounded_normal(rng, (257, 768))
        with thread_count(1):
            one = linear(weight, x)
        for threads in (1, 2, 3):
            for m in (1, 9, 257):
                out = np.full((m, 520), np.nan, F32)
                scratch = np.empty(m * 24 * RECORD, np.uint8)
                packed.linear(threads, x[-m:], scratch, weight.address, weight.panel_bytes,
                              weight.tile, 520, 0, out)  # fmt: skip
                assert_same_bits(out, one[-m:], f"{name}, {m} rows, {threads} threads")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_neighbour_with_huge_or_broken_activations_changes_nothing(bad):
    rng = np.random.default_rng(5)
    for name in FORMATS:
        raw, x = random_blocks(rng, name, 65, 512), rounded_normal(rng, (13, 512))
        weight = packed.pack(raw, name, 65, 512)
        clean = linear(weight, x)
        for row in (0, 6, 12):
            dirty = x.copy()
            dirty[row] *= 1e4
            dirty[row, 5] = bad
            got, others = linear(weight, dirty), np.arange(13) != row
            assert_same_bits(got[others], clean[others], f"{name}, beside row {row}")
            assert_same_bits(got[row], oracle(raw, name, dirty[row : row + 1])[0])
            assert not same_bits(got[row], clean[row])
            assert np.isfinite(bad) or np.isnan(got[row]).all()


def test_a_row_from_the_edges_of_binary32_equals_the_reference():
    rng = np.random.default_rng(6)
    for name in FORMATS:
        raw, k = random_blocks(rng, name, 17, 512), 512
        x = rounded_normal(rng, (9, k))
        scales = (2.0**-99, 2.0**-101, 2.0**-126, 2.0**-149, 2.0**126, 0, -0.0)
        for row, scale in enumerate(scales):
            x[row] = np.float32(scale) * np.sign(x[row])
        x[0, :32] *= F32(0.5)  # at the bound itself, and beside it one float below
        x[0, 32:64] = np.nextafter(x[0, :32], F32(0))
        x[7, 100:300] = 0
        x[8, 32:64] *= F32(2.0**-98)
        expected = oracle(raw, name, x)
        assert ((expected != 0) & (abs(expected) < 2.0**-126)).sum() == 0
        assert_same_bits(linear(packed.pack(raw, name, 17, k), x), expected, name)
        assert (expected[1:4] == 0).all()


def test_a_value_halfway_between_two_integers_is_quantised_as_the_reference_does():
    """Halves go to the even integer; beside them is where other formulas of q differ."""
    rng = np.random.default_rng(12)
    halves = rng.choice(np.arange(-251, 252, 2), (128, 32)).astype(F32) / F32(2)
    exact = halves * F32(2.0) ** rng.integers(-9, 9, (128, 1)).astype(F32)
    exact[:, 0] = 127 * exact[:, 0] / halves[:, 0]
    largest = rng.uniform(0.5, 2, (128, 1)).astype(F32)
    beside = (halves * largest / F32(127)).astype(F32)
    beside[:, 0] = largest[:, 0]
    assert (np.rint(exact / (exact[:, :1] / F32(127))) % 2 == 0)[:, 1:].all()
    assert (np.rint(beside / (largest / F32(127))) != np.rint(beside * (F32(127) / largest))).any()
    raw = random_blocks(rng, "Q8_0", 17, 512)
    for groups in (exact, beside):
        x = groups.reshape(8, 512)
        assert_same_bits(linear(packed.pack(raw, "Q8_0", 17, 512), x), oracle(raw, "Q8_0", x))


def test_no_rows_give_no_rows():
    weight = packed.pack(extreme_blocks("Q4_0", 5, 64, 0x77), "Q4_0", 5, 64)
    out = np.empty((0, 5), F32)
    weight.linear(np.empty((0, 64), F32), None, out)
    weight.rows(np.empty(0, np.int64), np.empty((0, 64), F32))


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_the_weight_are_the_references(name):
    rng = np.random.default_rng(7)
    for k in (256, 768):
        raw = random_blocks(rng, name, 130, k)
        weight, ids = packed.pack(raw, name, 130, k), np.array([0, 129, 64, 63, 0, 65, 128])
        weight.rows(ids, np.empty((7, k), F32))
        with guarded_allocations():
            out = np.empty((7, k), F32)
            weight.rows(ids, out)
        blocks = reference_packed.unpack(raw, name)
        assert_same_bits(out, reference_packed.rows(blocks, ids), name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_weight_is_little_larger_than_its_tensor_and_its_own(name):
    raw = random_blocks(np.random.default_rng(8), name, 128, 1024)
    weight = packed.pack(raw, name, 128, 1024)
    assert raw.nbytes <= weight.nbytes <= 1.03 * raw.nbytes
    assert weight.address % 64 == 0
    assert (weight.n, weight.k, weight.storage) == (128, 1024, name)
    x = rounded_normal(np.random.default_rng(9), (1, 1024))
    before = linear(weight, x)
    raw[:] = 0
    assert_same_bits(linear(weight, x), before)


@pytest.mark.parametrize("name", FORMATS)
def test_a_scale_that_is_no_number_is_refused_by_its_place(name):
    for at in SCALES[name]:
        for value, text in ((np.inf, "inf"), (-np.inf, "-inf"), (np.nan, "nan")):
            raw = random_blocks(np.random.default_rng(10), name, 70, 512)
            values, size = BLOCK_FORMATS[name]
            last = 512 // values - 1
            start = last * size + at
            raw[66, start : start + 2] = np.array([value], np.float16).view(np.uint8)
            place = f"raw: got a scale of {text} in {name} block {last} of row 66"
            with pytest.raises(ValueError, match=place):
                packed.pack(raw, name, 70, 512)


def test_what_does_not_fit_is_refused():
    raw = random_blocks(np.random.default_rng(11), "Q4_1", 5, 64)
    with pytest.raises(ValueError, match="storage: got 'Q2_K', expected one of Q4_0, Q4_1"):
        packed.pack(raw, "Q2_K", 5, 64)
    with pytest.raises(ValueError, match="k: got 48, expected a multiple of Q4_1's block of 32"):
        packed.pack(raw, "Q4_1", 5, 48)
    with pytest.raises(ValueError, match=r"raw: got uint8\(5, 40\), expected uint8\(4, 40\)"):
        packed.pack(raw, "Q4_1", 4, 64)
    with pytest.raises(ValueError, match="raw: got int8"):
        packed.pack(raw.view(np.int8), "Q4_1", 5, 64)
