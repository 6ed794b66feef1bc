"""The compiled linear and embedding kernels: the reference's bits at every shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detinfer import ops
from detinfer.kernels import reference
from detinfer.testing import (
    COLUMNS,
    DEPTHS,
    ROWS,
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
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_linear_equals_the_reference_at_every_depth_and_width(depth, dtype):
    rng = np.random.default_rng(depth)
    x = rounded_normal(rng, (9, depth), dtype)
    w = rounded_normal(rng, (max(COLUMNS), depth), dtype)
    bias = rounded_normal(rng, (max(COLUMNS),), dtype)
    expected = reference.linear(x, w, bias, dtype)
    for n in COLUMNS:
        weight = ops.pack(to_torch(w[:n], dtype))
        got = run(ops.linear, surrounded(to_torch(x, dtype)), weight, to_torch(bias[:n], dtype))
        assert got.dtype == getattr(torch, dtype)
        assert_same_bits(got.float(), expected[:, :n], f"n={n}")


@pytest.mark.parametrize("storage", WEIGHT_DTYPES)
@pytest.mark.parametrize("depth", [48, 576, 1000])
def test_linear_of_float32_rows_equals_the_reference_at_every_row_count(storage, depth):
    rng = np.random.default_rng(1)
    x = rounded_normal(rng, (max(ROWS), depth))
    w = rounded_normal(rng, (70, depth), storage)
    expected = reference.linear(x, w[:17])
    weight, narrow = ops.pack(to_torch(w, storage)), ops.pack(to_torch(w[:17], storage))
    assert_same_bits(run(ops.linear, to_torch(x), narrow), expected)
    whole = run(ops.linear, to_torch(x), weight)
    assert_same_bits(whole[:, :17], expected)
    for m in ROWS:
        assert_same_bits(run(ops.linear, to_torch(x[:m]), weight), whole[:m], f"{m} rows")


def test_no_row_of_a_large_step_is_lost():
    rng = np.random.default_rng(4)
    x, w = rounded_normal(rng, (600, 65)), rounded_normal(rng, (70, 65))
    whole, weight = reference.linear(x, w), ops.pack(to_torch(w))
    for m in (191, 192, 193, 287, 383, 384, 385, 399, 400, 479, 481, 599, 600):  # blocks of 96
        assert_same_bits(run(ops.linear, to_torch(x[:m]), weight), whole[:m], f"{m} rows")


@pytest.mark.parametrize("depth", [65, 576])
def test_a_row_keeps_its_bits_in_any_slot_order_and_company(depth):
    rng = np.random.default_rng(2)
    weight = ops.pack(to_torch(rounded_normal(rng, (130, depth))))
    x = to_torch(rounded_normal(rng, (130, depth)))
    assert_rows_independent(lambda rows: ops.linear(rows, weight), x, "linear")


def test_torch_linear_fails_the_same_comparison():
    rng = np.random.default_rng(3)
    x, w = rounded_normal(rng, (65, 576)), rounded_normal(rng, (130, 576))
    stock = torch.nn.functional.linear(to_torch(x), to_torch(w))
    assert not same_bits(stock, reference.linear(x, w))


def test_threads_do_not_change_bits():
    rng = np.random.default_rng(4)
    weight = ops.pack(to_torch(rounded_normal(rng, (520, 576))))
    for m in (1, 9, 257):
        x = to_torch(rounded_normal(rng, (m, 576)))
        with thread_count(1):
            one = run(ops.linear, x, weight)
        with thread_count(2):
            assert_same_bits(run(ops.linear, x, weight), one, f"{m} rows")


def test_integers_up_to_2_to_24_multiply_exactly():
    rng = np.random.default_rng(5)
    x = rng.integers(-32, 33, (65, 512)).astype(F32)
    w = rng.integers(-511, 512, (130, 512)).astype(F32)
    got = run(ops.linear, to_torch(x), ops.pack(to_torch(w)))
    exact = x.astype(np.int64) @ w.astype(np.int64).T
    np.testing.assert_array_equal(got.numpy().astype(np.int64), exact)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
def test_a_neighbour_with_huge_or_broken_activations_changes_nothing(bad):
    rng = np.random.default_rng(6)
    x = rounded_normal(rng, (13, 192))
    weight = ops.pack(to_torch(rounded_normal(rng, (65, 192))))
    clean = run(ops.linear, to_torch(x), weight)
    for row in (0, 6, 12):
        dirty = x.copy()
        dirty[row] *= 1e4
        dirty[row, 5] = bad
        got = run(ops.linear, to_torch(dirty), weight)
        others = np.arange(13) != row
        assert_same_bits(got[others], clean[others], f"beside row {row}")
        assert_same_bits(got[row], reference.linear(dirty[row : row + 1], weight_of(weight))[0])
        assert not same_bits(got[row], clean[row])


def weight_of(weight):
    return weight.unpack(torch.float32).numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_subnormals_are_kept(dtype):
    rng = np.random.default_rng(7)
    x = rounded_normal(rng, (3, 65), dtype, scale=2.0**-70)
    w = rounded_normal(rng, (17, 65), dtype, scale=2.0**-62)
    w[0] = 2.0**-133  # a subnormal weight
    x[:, :2] = 2.0**-133  # subnormal activations
    w[1, :2] = 1.0
    expected = reference.linear(x, w)
    assert ((expected != 0) & (abs(expected) < 2.0**-126)).any()
    x_tensor, weight = to_torch(x), ops.pack(to_torch(w, dtype))
    assert_same_bits(run(ops.linear, x_tensor, weight), expected)


def test_negative_zero_and_leading_axes_and_strides():
    rng = np.random.default_rng(8)
    x = rounded_normal(rng, (2, 3, 64))
    w = rounded_normal(rng, (5, 64))
    expected = reference.linear(x.reshape(6, 64), w).reshape(2, 3, 5)
    weight = ops.pack(to_torch(w))
    assert_same_bits(run(ops.linear, to_torch(x), weight), expected)
    strided = torch.stack([to_torch(x), torch.full((2, 3, 64), float("nan"))], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert_same_bits(run(ops.linear, strided, weight), expected)
    minus = np.full((1, 64), -0.0, F32)
    assert_same_bits(run(ops.linear, to_torch(minus), weight), reference.linear(minus, w))


def test_no_rows_give_no_rows():
    weight = ops.pack(torch.ones(5, 64))
    assert ops.linear(torch.ones(0, 64), weight).shape == (0, 5)


def test_storage_never_changes_bits():
    rng = np.random.default_rng(9)
    w = rounded_normal(rng, (33, 192), "bfloat16")
    with_odd_row = np.concatenate([w, np.full((1, 192), 0.1, F32)])
    short, wide = ops.pack(to_torch(w)), ops.pack(to_torch(with_odd_row))
    assert (short.storage, wide.storage) == ("bfloat16", "float32")
    x = to_torch(rounded_normal(rng, (7, 192)))
    assert_same_bits(run(ops.linear, x, short), run(ops.linear, x, wide)[:, :33])


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("n", COLUMNS)
def test_packing_is_undone_by_unpacking(dtype, n):
    w = to_torch(rounded_normal(np.random.default_rng(10), (n, 65), dtype), dtype)
    packed = ops.pack(w)
    assert (packed.n, packed.k) == (n, 65)
    assert_same_bits(packed.unpack(w.dtype), w)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_embedding_takes_rows_of_the_weight(dtype):
    w = to_torch(rounded_normal(np.random.default_rng(11), (130, 65), dtype), dtype)
    ids = torch.tensor([[0, 129, 64], [63, 0, 65]])
    assert_same_bits(run(ops.embedding, ids, ops.pack(w), w.dtype), w[ids])
    for bad in (-1, 130):
        with pytest.raises(ValueError, match=r"expected 0\.\.129"):
            ops.embedding(torch.tensor([0, bad]), ops.pack(w), w.dtype)


def test_shapes_that_do_not_fit_are_refused():
    weight = ops.pack(torch.ones(5, 64))
    with pytest.raises(ValueError, match="got 63 features, expected 64"):
        ops.linear(torch.ones(2, 63), weight)
    with pytest.raises(ValueError, match=r"bias: got shape \(4,\), expected \(5,\)"):
        ops.linear(torch.ones(2, 64), weight, torch.ones(4))
    with pytest.raises(ValueError, match="float64"):
        ops.linear(torch.ones(2, 64, dtype=torch.float64), weight)
