"""The GPU's norms in Triton's interpreter: the reference's bits, whatever the launch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.interpreter import install

install()

from guarded_tensors import assert_guards_untouched, guarded, run  # noqa: E402

from detinfer.kernels import reference_native  # noqa: E402
from detinfer.kernels.triton import norms  # noqa: E402
from detinfer.testing import (  # noqa: E402
    DTYPES,
    NORM_SIZES,
    SPECIAL,
    assert_rows_independent,
    assert_same_bits,
    rounded_normal,
    same_bits,
    surrounded,
    to_torch,
)

F32 = np.float32
EPS = 1e-5
VARIANTS = ("scale_rounded", "round_scaled", "one_plus")
SIZES = (*NORM_SIZES, 1025, 2048)  # and past the 1024 lanes, with a tail and without
ULP = 2.0**-24  # half a unit in the last place: the largest error of one rounding, relative


def rows_and_weight(seed, shape, dtype="float32"):
    rng = np.random.default_rng(seed)
    return rounded_normal(rng, shape, dtype), rounded_normal(rng, shape[-1:], dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_rms_norm_equals_the_reference(size, dtype, variant):
    x, w = rows_and_weight(size, (3, size), dtype)
    for weight in (w, None):
        scale = None if weight is None else to_torch(weight, dtype)
        got = run(norms.rms_norm, surrounded(to_torch(x, dtype)), scale, EPS, variant)
        assert got.dtype == DTYPES[dtype]
        assert_same_bits(got.float(), reference_native.rms_norm(x, weight, EPS, variant, dtype))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_equals_the_reference(size, dtype):
    x, w = rows_and_weight(size, (3, size), dtype)
    b = rounded_normal(np.random.default_rng(1), (size,), dtype)
    for weight, bias in ((w, b), (w, None), (None, b), (None, None)):
        tensors = [None if a is None else to_torch(a, dtype) for a in (weight, bias)]
        got = run(norms.layer_norm, surrounded(to_torch(x, dtype)), *tensors, EPS)
        assert_same_bits(got.float(), reference_native.layer_norm(x, weight, bias, EPS, dtype))


@pytest.mark.parametrize("size", [31, 576, 1025])
@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_gets_the_bits_of_torch_and_the_norm_is_of_it(size, dtype):
    x, w = rows_and_weight(size, (3, size), dtype)
    rows = to_torch(x, dtype)
    before = to_torch(rounded_normal(np.random.default_rng(1), (3, size), dtype), dtype)
    residual, buffer = guarded((3, size), DTYPES[dtype])
    residual.copy_(before)
    got = run(norms.rms_norm, rows, to_torch(w, dtype), EPS, "scale_rounded", residual=residual)
    assert_guards_untouched(buffer)
    assert_same_bits(residual, before + rows)
    expected = reference_native.rms_norm(
        (before + rows).float().numpy(), w, EPS, "scale_rounded", dtype
    )
    assert_same_bits(got.float(), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_weight_on_bfloat16_rows(variant):
    x, w = rows_and_weight(1, (2, 65), "bfloat16")
    got = run(norms.rms_norm, to_torch(x, "bfloat16"), to_torch(w), EPS, variant)
    assert_same_bits(got.float(), reference_native.rms_norm(x, w, EPS, variant, "bfloat16"))


def test_rows_may_lie_anywhere():
    x, w = rows_and_weight(2, (5, 7, 48))
    whole, weight = to_torch(x), to_torch(w)
    views = {
        "heads of a fused projection": whole[:, 2:5],
        "every other row": whole[:, 3][::2],
        "columns of wider rows": whole.view(5, -1)[:, 48:96],
        "one row": whole[1, 1],
        "four dimensions": whole[:4].view(2, 2, 7, 48)[:, :, 1:3],
    }
    for name, view in views.items():
        for op in (
            lambda rows: norms.rms_norm(rows, weight, EPS, "one_plus"),
            lambda rows: norms.layer_norm(rows, weight, None, EPS),
        ):
            got = run(op, view)
            assert got.is_contiguous()
            assert_same_bits(got, op(view.contiguous()), name)
    expected = reference_native.rms_norm(x[:, 2:5], w, EPS, "one_plus")
    assert_same_bits(norms.rms_norm(whole[:, 2:5], weight, EPS, "one_plus"), expected)
    x2 = whole.view(5, -1)
    residual = torch.zeros(5, 100)[:, :48]
    norms.rms_norm(x2[:, 48:96], weight, EPS, "one_plus", residual=residual)
    assert_same_bits(residual, x2[:, 48:96])


@pytest.mark.parametrize("size", [65, 1025])
def test_rms_norm_is_accurate(size):
    """Relative budget, in roundings of 2^-24 each.

    The sum of squares takes at most 2 folds and a tree of 10: 12. Division and eps: 2. The root
    halves them, (12 + 2) / 2 = 7, and adds 1; the reciprocal 1; two products 2. In all 11.
    """
    x, w = rows_and_weight(3, (9, size))
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + F32(EPS)) * w
    got = norms.rms_norm(to_torch(x), to_torch(w), EPS, "round_scaled").numpy()
    assert (np.abs(got - exact) <= 11.01 * ULP * np.abs(exact)).all()


@pytest.mark.parametrize("size", [65, 1025])
def test_layer_norm_is_accurate(size):
    """Budget against the row's largest |x| (A) over its deviation s, as the mean cancels.

    The mean is off by at most 12 roundings of A (as above, and a division: 13), d by one more: 14.
    That error in every d moves the deviation by as much: 14 again, over s; its own sum and root
    add 11 relative to y, and y is at most 2A / s.
    """
    x, _ = rows_and_weight(4, (9, size))
    x += F32(3)
    wide = x.astype(np.float64)
    d = wide - wide.mean(-1, keepdims=True)
    deviation = np.sqrt((d**2).mean(-1, keepdims=True) + F32(EPS))
    exact = d / deviation
    got = norms.layer_norm(to_torch(x), None, None, EPS).numpy()
    largest = np.abs(wide).max(-1, keepdims=True)
    budget = 14 * largest / deviation * (1 + np.abs(exact)) + 11 * np.abs(exact)
    assert (np.abs(got - exact) <= 1.01 * ULP * budget).all()


def every_configuration(monkeypatch, op):
    """The results of op under every rows-to-a-program, power of two."""
    for rows in (1, 4, 8):
        monkeypatch.setattr(norms, "configuration", lambda size, count, rows=rows: (rows, 1))
        yield op()


@pytest.mark.parametrize("size", [48, 1025])
def test_configurations_do_not_change_bits(monkeypatch, size):
    x, w = rows_and_weight(5, (17, size))  # some rows hide a wrong sum: its root halves the error
    rows, weight = to_torch(x), to_torch(w)
    for op in (
        lambda: run(norms.rms_norm, rows, weight, EPS, "scale_rounded", residual=rows.clone()),
        lambda: run(norms.layer_norm, rows, weight, weight, EPS),
    ):
        first = op()
        for result in every_configuration(monkeypatch, op):
            assert_same_bits(result, first)
        monkeypatch.undo()


def test_a_sum_that_follows_the_tile_fails_the_same_comparison(monkeypatch):
    x, w = rows_and_weight(5, (17, 1025))
    op = lambda: norms.rms_norm(to_torch(x), to_torch(w), EPS, "scale_rounded")  # noqa: E731
    first = op()
    monkeypatch.setattr(norms, "lanes_of", lambda size: 512)
    assert not same_bits(op(), first)


@pytest.mark.parametrize("rows", [1, 2, 9, 513])
def test_norms_keep_their_bits_at_every_row_count(rows):
    x, w = rows_and_weight(6, (513, 40))  # 512 rows and more take another configuration
    rms = run(norms.rms_norm, to_torch(x[:rows]), to_torch(w), EPS, "scale_rounded")
    assert_same_bits(rms, reference_native.rms_norm(x, w, EPS, "scale_rounded")[:rows])
    layer = run(norms.layer_norm, to_torch(x[:rows]), to_torch(w), None, EPS)
    assert_same_bits(layer, reference_native.layer_norm(x, w, None, EPS)[:rows])


def test_rows_are_independent():
    x, w = rows_and_weight(7, (17, 1025))
    weight = to_torch(w)
    assert_rows_independent(
        lambda rows: norms.rms_norm(rows, weight, EPS, "one_plus"), to_torch(x), "rms_norm"
    )
    assert_rows_independent(
        lambda rows: norms.layer_norm(rows, weight, weight, EPS), to_torch(x), "layer_norm"
    )


def test_lanes_that_follow_the_row_count_are_found(monkeypatch):
    x, w = rows_and_weight(7, (17, 1025))

    def op(rows):
        monkeypatch.setattr(norms, "lanes_of", lambda size: 1024 if len(rows) > 4 else 512)
        return norms.rms_norm(rows, to_torch(w), EPS, "one_plus")

    with pytest.raises(AssertionError, match="elements differ"):
        assert_rows_independent(op, to_torch(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("size", [40, 65])  # rows share a program, or do not
def test_a_neighbour_with_huge_or_broken_activations_changes_nothing(monkeypatch, bad, size):
    monkeypatch.setattr(norms, "configuration", lambda size, rows: (4 if size == 40 else 1, 1))
    x, w = rows_and_weight(8, (9, size))
    dirty = x.copy()
    dirty[4] *= 1e4
    dirty[4, size - 1] = bad
    others = np.arange(9) != 4
    for op, expected in (
        (norms.rms_norm, reference_native.rms_norm),
        (norms.layer_norm, reference_native.layer_norm),
    ):
        rest = (EPS, "scale_rounded") if op is norms.rms_norm else (None, EPS)
        got, clean = (run(op, torch.from_numpy(a), to_torch(w), *rest) for a in (dirty, x))
        assert_same_bits(got[others], clean[others])
        assert not same_bits(got[4], clean[4])
        assert_same_bits(got, expected(dirty, w, *rest))


def test_special_values_and_subnormals():
    x = np.tile(SPECIAL, (len(SPECIAL), 6))
    for i, value in enumerate(SPECIAL):
        x[i, ::2] = value
    x = np.concatenate([x, np.full((1, x.shape[1]), 1e-42, F32)])
    w = np.ones(x.shape[1], F32)
    for eps in (EPS, 0.0):
        got = run(norms.rms_norm, to_torch(x), to_torch(w), eps, "scale_rounded")
        assert_same_bits(got, reference_native.rms_norm(x, w, eps, "scale_rounded"), f"{eps}")
        got = run(norms.layer_norm, to_torch(x), to_torch(w), None, eps)
        assert_same_bits(got, reference_native.layer_norm(x, w, None, eps), f"layer {eps}")


def test_a_given_output_is_filled_and_returned():
    x, w = rows_and_weight(9, (3, 65))
    for op, rest in ((norms.rms_norm, (EPS, "one_plus")), (norms.layer_norm, (None, EPS))):
        out, buffer = guarded((3, 65), torch.float32)
        assert op(to_torch(x), to_torch(w), *rest, out=out) is out
        assert_guards_untouched(buffer)
        assert_same_bits(out, op(to_torch(x), to_torch(w), *rest))


def test_no_rows_give_no_rows():
    w = torch.ones(65)
    assert norms.rms_norm(torch.ones(0, 65), w, EPS, "one_plus").shape == (0, 65)
    assert norms.layer_norm(torch.ones(2, 0, 65), w, w, EPS).shape == (2, 0, 65)


X, W = torch.ones(2, 4), torch.ones(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norms.rms_norm(X, W, EPS, "l2"), "variant: got 'l2', expected one of scale"),
        (lambda: norms.rms_norm(X.double(), W, EPS, "one_plus"), "x: got torch.float64"),
        (lambda: norms.rms_norm(X.T, W, EPS, "one_plus"), "x: got strides"),
        (lambda: norms.rms_norm(torch.tensor(1.0), W, EPS, "one_plus"), "x: got a scalar"),
        (lambda: norms.rms_norm(X, X, EPS, "one_plus"), r"weight: got shape \(2, 4\)"),
        (lambda: norms.rms_norm(X, W.int(), EPS, "one_plus"), "weight: got torch.int32"),
        (
            lambda: norms.rms_norm(X, W, EPS, "one_plus", residual=X.half()),
            "residual: got torch.float16",
        ),
        (
            lambda: norms.rms_norm(X, W, EPS, "one_plus", residual=torch.ones(4, 2).T),
            "residual: got strides",
        ),
        (lambda: norms.rms_norm(X, W, EPS, "one_plus", out=W), r"out: got shape \(4,\)"),
        (lambda: norms.layer_norm(X, W, X, EPS), r"bias: got shape \(2, 4\), expected \(4,\)"),
        (lambda: norms.layer_norm(X, W, W, EPS, out=X.half()), "out: got torch.float16"),
        (
            lambda: norms.layer_norm(X, W, W, EPS, out=torch.ones(4, 2).T),
            "out: got strides",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
