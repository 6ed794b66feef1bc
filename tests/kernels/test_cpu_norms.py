"""The compiled norms: the reference's bits at every size and row count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detinfer import ops
from detinfer.kernels import reference
from detinfer.testing import (
    NORM_SIZES,
    SPECIAL,
    assert_rows_independent,
    assert_same_bits,
    rounded_normal,
    run,
    same_bits,
    surrounded,
    thread_count,
    to_torch,
)

F32 = np.float32
EPS = 1e-5
DTYPES = ("float32", "bfloat16", "float16")
VARIANTS = ("scale_rounded", "round_scaled", "one_plus")


@pytest.mark.parametrize("size", NORM_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_rms_norm_equals_the_reference(size, dtype, variant):
    rng = np.random.default_rng(size)
    x, w = rounded_normal(rng, (9, size), dtype), rounded_normal(rng, (size,), dtype)
    for weight in (w, None):
        scale = None if weight is None else to_torch(weight, dtype)
        got = run(ops.rms_norm, surrounded(to_torch(x, dtype)), scale, EPS, variant)
        assert got.dtype == getattr(torch, dtype)
        assert_same_bits(got.float(), reference.rms_norm(x, weight, EPS, variant, dtype))


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_weight_on_bfloat16_rows(variant):
    rng = np.random.default_rng(1)
    x, w = rounded_normal(rng, (5, 576), "bfloat16"), rounded_normal(rng, (576,), "bfloat16")
    got = run(ops.rms_norm, to_torch(x, "bfloat16"), to_torch(w), EPS, variant)
    assert_same_bits(got.float(), reference.rms_norm(x, w, EPS, variant, "bfloat16"))


@pytest.mark.parametrize("size", NORM_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_equals_the_reference(size, dtype):
    rng = np.random.default_rng(size)
    x, w, b = (rounded_normal(rng, shape, dtype) for shape in ((9, size), (size,), (size,)))
    for weight, bias in ((w, b), (w, None), (None, b), (None, None)):
        tensors = [None if a is None else to_torch(a, dtype) for a in (weight, bias)]
        got = run(ops.layer_norm, surrounded(to_torch(x, dtype)), *tensors, EPS)
        assert_same_bits(got.float(), reference.layer_norm(x, weight, bias, EPS, dtype))


# 255, 256 and 257: another engine changed its block size at 256 rows a step.
@pytest.mark.parametrize("rows", [1, 255, 256, 257, 1024, 4097])
def test_norms_keep_their_bits_at_every_row_count(rows):
    rng = np.random.default_rng(2)
    x, w = rounded_normal(rng, (4097, 100)), rounded_normal(rng, (100,))
    rms = run(ops.rms_norm, to_torch(x[:rows]), to_torch(w), EPS, "scale_rounded")
    assert_same_bits(rms, reference.rms_norm(x, w, EPS, "scale_rounded")[:rows])
    layer = run(ops.layer_norm, to_torch(x[:rows]), to_torch(w), None, EPS)
    assert_same_bits(layer, reference.layer_norm(x, w, None, EPS)[:rows])


def test_rows_are_independent():
    rng = np.random.default_rng(3)
    x, w = to_torch(rounded_normal(rng, (257, 65))), to_torch(rounded_normal(rng, (65,)))
    assert_rows_independent(lambda rows: ops.rms_norm(rows, w, EPS, "one_plus"), x, "rms_norm")
    assert_rows_independent(lambda rows: ops.layer_norm(rows, w, w, EPS), x, "layer_norm")


def test_torch_norms_fail_the_same_comparison():
    rng = np.random.default_rng(4)
    x, w = rounded_normal(rng, (65, 576)), rounded_normal(rng, (576,))
    stock = torch.nn.functional.rms_norm(to_torch(x), (576,), to_torch(w), EPS)
    assert not same_bits(stock, reference.rms_norm(x, w, EPS, "scale_rounded"))
    stock = torch.nn.functional.layer_norm(to_torch(x), (576,), to_torch(w), None, EPS)
    assert not same_bits(stock, reference.layer_norm(x, w, None, EPS))


def test_threads_do_not_change_bits():
    rng = np.random.default_rng(5)
    x, w = to_torch(rounded_normal(rng, (1024, 576))), to_torch(rounded_normal(rng, (576,)))
    with thread_count(1):
        one = run(ops.rms_norm, x, w, EPS, "round_scaled"), run(ops.layer_norm, x, w, w, EPS)
    with thread_count(2):
        assert_same_bits(run(ops.rms_norm, x, w, EPS, "round_scaled"), one[0])
        assert_same_bits(run(ops.layer_norm, x, w, w, EPS), one[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_neighbour_with_huge_or_broken_activations_changes_nothing(bad):
    rng = np.random.default_rng(6)
    x, w = rounded_normal(rng, (9, 65)), rounded_normal(rng, (65,))
    dirty = x.copy()
    dirty[4] *= 1e4
    dirty[4, 64] = bad
    others = np.arange(9) != 4
    for op in (
        lambda rows: run(ops.rms_norm, rows, to_torch(w), EPS, "scale_rounded"),
        lambda rows: run(ops.layer_norm, rows, to_torch(w), None, EPS),
    ):
        got, clean = op(to_torch(dirty)), op(to_torch(x))
        assert_same_bits(got[others], clean[others])
        assert not same_bits(got[4], clean[4])


def test_special_values_and_subnormals():
    x = np.tile(SPECIAL, (len(SPECIAL), 6))
    for i, value in enumerate(SPECIAL):
        x[i, ::2] = value
    x = np.concatenate([x, np.full((1, x.shape[1]), 1e-42, F32)])
    w = np.ones(x.shape[1], F32)
    for eps in (EPS, 0.0):
        got = run(ops.rms_norm, to_torch(x), to_torch(w), eps, "scale_rounded")
        assert_same_bits(got, reference.rms_norm(x, w, eps, "scale_rounded"), f"rms, eps={eps}")
        got = run(ops.layer_norm, to_torch(x), to_torch(w), None, eps)
        assert_same_bits(got, reference.layer_norm(x, w, None, eps), f"layer, eps={eps}")
    tiny = reference.rms_norm(x[-1:], w, EPS, "scale_rounded")
    assert ((tiny != 0) & (abs(tiny) < 2.0**-126)).all()  # a subnormal row, kept
