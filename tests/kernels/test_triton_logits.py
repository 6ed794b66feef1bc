"""Embedding, argmax, checksum, softmax and top-k in Triton's interpreter: the reference's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.interpreter import install

install()

from guarded_tensors import assert_guards_untouched, guarded, run  # noqa: E402

from detinfer.kernels import reference_native, reference_sampling  # noqa: E402
from detinfer.kernels.triton import logits  # noqa: E402
from detinfer.kernels.triton.embedding import embedding  # noqa: E402
from detinfer.testing import (  # noqa: E402
    DTYPES,
    SPECIAL,
    assert_rows_independent,
    assert_same_bits,
    rounded_normal,
    same_bits,
    surrounded,
    to_torch,
)

F32 = np.float32
ULP = 2.0**-24
VOCABULARIES = (1, 2, 63, 64, 65, 1000, 2048, 2049, 5000)
SOFTMAXES = {
    "softmax": (logits.softmax, reference_native.softmax),
    "log_softmax": (logits.log_softmax, reference_native.log_softmax),
}


def normal(seed, shape, dtype="float32", scale=1.0):
    return rounded_normal(np.random.default_rng(seed), shape, dtype, scale)


def expected_summary(x):
    sums = reference_sampling.checksum(x).view(np.int64)
    return np.concatenate([reference_sampling.argmax(x)[:, None], sums], axis=1)


@pytest.mark.parametrize("size", VOCABULARIES)
@pytest.mark.parametrize("rows", [1, 3])
def test_summary_equals_the_reference(size, rows):
    x = normal(size, (rows, size))
    got = run(logits.summarise, surrounded(to_torch(x)))
    assert got.dtype == torch.int64
    assert_same_bits(got, expected_summary(x))


def test_argmax_takes_the_lowest_id_wherever_the_ties_lie(monkeypatch):
    monkeypatch.setattr(logits, "SLICE", 64)
    for first in (0, 1, 63, 64, 130, 200):
        x = normal(5, (1, 300))
        x[0, [first, 299, (first + 299) // 2]] = 9.0
        assert run(logits.summarise, to_torch(x))[0, 0] == first
    zeros = np.array([[-0.0] * 70 + [0.0] * 70], F32)
    assert run(logits.summarise, to_torch(zeros))[0, 0] == 0
    negative = np.array([[-3.0, -1.0, -1.0, -2.0]], F32)
    assert run(logits.summarise, to_torch(negative))[0, 0] == 1


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("size", [1, 65, 2049])
def test_argmax_refuses_a_row_with_one_value_that_is_no_number(bad, size):
    x = normal(6, (3, size))
    for place in {0, size // 2, size - 1}:
        broken = x.copy()
        broken[1, place] = bad
        got = run(logits.summarise, torch.from_numpy(broken))
        assert_same_bits(got, expected_summary(broken))
        assert got[1, 0] == -1


@pytest.mark.parametrize("size", [1, 65, 2049])
def test_argmax_never_takes_a_logit_of_minus_infinity(size):
    x = np.full((4, size), -np.inf, F32)
    x[1, size // 2] = -3.4028235e38
    x[2, -1] = -1.0
    x[3] = normal(9, size)
    x[3, reference_sampling.argmax(x[3:])[0]] = -np.inf
    got = run(logits.summarise, torch.from_numpy(x))
    assert_same_bits(got, expected_summary(x))
    assert got[:3, 0].tolist() == [-1, size // 2, size - 1]


def test_checksum_sees_every_bit_and_every_place_and_counts_nans_alike():
    x = normal(7, (41, 40))
    x[:] = x[0]
    np.einsum("ii->i", x.view(np.uint32)[1:])[:] ^= 1  # row 1 + i differs in the last bit of i
    sums = run(logits.summarise, to_torch(x))[:, 1:]
    assert len({tuple(row) for row in sums.tolist()}) == 41
    nans = np.array([[0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0x80000000]], np.uint32).view(F32)
    same = np.array([[np.nan, np.nan, np.nan, -0.0]], F32)
    got = run(logits.summarise, torch.from_numpy(nans))
    assert_same_bits(got, expected_summary(nans))
    assert_same_bits(got, run(logits.summarise, torch.from_numpy(same)))


def test_summary_of_extreme_values():
    x = np.concatenate([SPECIAL, np.array([3.4028235e38, -3.4028235e38], F32)])[None]
    for row in (x, -x, x[:, ::-1].copy(), np.full((1, 7), -3.4028235e38, F32)):
        assert_same_bits(run(logits.summarise, to_torch(row)), expected_summary(row))


@pytest.mark.parametrize("slice_size", [128, 2048])
def test_slices_do_not_change_a_summary(monkeypatch, slice_size):
    x = to_torch(normal(8, (2, 2500)))
    first = run(logits.summarise, x)
    monkeypatch.setattr(logits, "SLICE", slice_size)
    assert_same_bits(run(logits.summarise, x), first)


def test_a_slice_counted_from_its_own_start_fails_the_same_comparison():
    x = normal(8, (2, 2500))
    parts = [expected_summary(x[:, start : start + 64].copy()) for start in range(0, 2500, 64)]
    assert not same_bits(sum(part[:, 1:] for part in parts), expected_summary(x)[:, 1:])


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("size", VOCABULARIES)
def test_softmax_equals_the_reference(name, size):
    op, expected = SOFTMAXES[name]
    x = normal(size, (3, size), scale=8.0)
    assert_same_bits(run(op, surrounded(to_torch(x))), expected(x))


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_softmax_of_16_bit_rows_is_float32(name, dtype):
    op, expected = SOFTMAXES[name]
    x = normal(1, (2, 5, 60), dtype)
    got = run(op, to_torch(x, dtype))
    assert got.dtype == torch.float32
    assert_same_bits(got, expected(x))


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_of_extreme_rows(name):
    op, expected = SOFTMAXES[name]
    x = np.zeros((10, 64), F32)
    x[0, 3] = np.nan
    x[1, 63] = np.inf
    x[2] = -np.inf
    x[3, :60] = -np.inf
    x[4, 1] = 3e38
    x[5] = -3e38
    x[6, :11] = SPECIAL
    x[7] = np.linspace(-100, 100, 64)
    x[8] = -0.0
    x[9] = np.nan
    for rows in (x, np.pad(x, ((0, 0), (0, 3)))):
        assert_same_bits(run(op, torch.from_numpy(rows)), expected(rows))
    assert name == "log_softmax" or np.isfinite(expected(x)[3]).all()


@pytest.mark.parametrize("size", [65, 5000])
def test_softmax_is_accurate(size):
    """Relative budget in roundings of 2^-24.

    exp: 1.1 ulp, at most 2.2 roundings, for itself and for each term of z; the difference x - m
    one rounding of at most 60, which moves its exp by 60 more; z takes at most 5 folds
    and a tree of 10; one division. In all 2·(2.2 + 60) + 15 + 1.
    """
    x = normal(2, (3, size), scale=6.0)
    wide = x.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    assert shifted.min() > -60
    exact = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    got = logits.softmax(to_torch(x)).numpy()
    assert (np.abs(got - exact) <= 140.4 * ULP * exact).all()
    # The logarithm turns what is relative into absolute: z's 77.2 and log's own 2 of at most 60,
    # the difference's rounding and the last one, each of at most 60.
    got = logits.log_softmax(to_torch(x)).numpy()
    assert (np.abs(got - np.log(exact)) <= (77.2 + 4 * 60) * ULP).all()


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_configurations_do_not_change_bits(monkeypatch, name):
    op, _ = SOFTMAXES[name]
    for size in (60, 1030):
        x = to_torch(normal(3, (9, size), scale=4.0))
        first = run(op, x)
        for rows in (1, 2, 16):
            monkeypatch.setattr(logits, "configuration", lambda *_, rows=rows: (rows, 1))
            assert_same_bits(run(op, x), first)
        monkeypatch.undo()


def test_lanes_that_follow_the_tile_fail_the_same_comparison(monkeypatch):
    x = to_torch(normal(3, (9, 1030), scale=4.0))
    first = logits.softmax(x)
    monkeypatch.setattr(logits, "lanes_of", lambda size: 256)
    assert not same_bits(logits.softmax(x), first)


def test_rows_are_independent():
    x = to_torch(normal(4, (9, 130)))
    for op in (logits.summarise, logits.softmax, logits.log_softmax):
        assert_rows_independent(op, x)


def test_lanes_that_follow_the_row_count_are_found(monkeypatch):
    x = to_torch(normal(4, (9, 130), scale=4.0))

    def op(rows):
        monkeypatch.setattr(logits, "lanes_of", lambda size: 256 if len(rows) > 4 else 64)
        return logits.softmax(rows)

    with pytest.raises(AssertionError, match="elements differ"):
        assert_rows_independent(op, x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_broken_neighbour_changes_nothing(bad):
    x = normal(9, (9, 65))
    dirty = x.copy()
    dirty[4] *= 1e4
    dirty[4, 64] = bad
    others = np.arange(9) != 4
    for op in (logits.summarise, logits.softmax, logits.log_softmax):
        got, clean = run(op, torch.from_numpy(dirty)), run(op, to_torch(x))
        assert_same_bits(got[others], clean[others])
        assert not same_bits(got[4], clean[4])


def test_rows_may_lie_apart():
    wide = to_torch(normal(10, (3, 200)))
    view = wide[:, 8:108]
    for op in (logits.summarise, logits.softmax):
        assert_same_bits(op(view), op(view.contiguous()))
    heads = wide.view(3, 4, 50)[:, 1:3]
    assert_same_bits(logits.softmax(heads), logits.softmax(heads.contiguous()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 65, 1030])
def test_embedding_copies_rows_and_marks_ids_that_are_none(dtype, size):
    table = to_torch(normal(12, (9, size), dtype), dtype)
    ids = torch.tensor([8, 0, -1, 0, 9, 3, 2**31 - 1])
    for index in (ids, ids.int(), ids.int()[:0]):
        got = run(embedding, index, surrounded(table))
        expected = torch.full((len(index), size), torch.nan, dtype=DTYPES[dtype])
        known = (index >= 0) & (index < 9)
        expected[known] = table[index[known].long()]
        assert_same_bits(got, expected)
    view = torch.cat([table, table], dim=1)[:, :size]
    assert_same_bits(run(embedding, ids[:2], view), table[ids[:2]])


def test_embedding_keeps_subnormals_and_signs():
    table = to_torch(SPECIAL[:, None])
    assert_same_bits(run(embedding, torch.arange(len(SPECIAL)), table), table)


def test_a_given_output_is_filled_and_returned():
    x = to_torch(normal(13, (3, 65)))
    out, buffer = guarded((3, 3), torch.int64)
    assert logits.summarise(x, out=out) is out
    assert_guards_untouched(buffer)
    assert_same_bits(out, logits.summarise(x))
    out, buffer = guarded((2, 65), torch.float32)
    assert embedding(torch.tensor([2, 1]), x, out=out) is out
    assert_guards_untouched(buffer)
    assert_same_bits(out, x[[2, 1]])


def test_no_rows_give_no_rows():
    none = torch.ones(0, 65)
    assert logits.summarise(none).shape == (0, 3)
    assert logits.softmax(none).shape == (0, 65)
    assert logits.log_softmax(torch.ones(3, 0)).shape == (3, 0)


X, IDS = torch.ones(2, 4), torch.tensor([1, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: logits.summarise(X.half()), "logits: got torch.float16, expected torch.float32"),
        (lambda: logits.summarise(X[0]), r"logits: got shape \(4,\), expected \(L, V\)"),
        (lambda: logits.summarise(X[:, :0]), r"logits: got shape \(2, 0\)"),
        (lambda: logits.summarise(X.T), "logits: got strides"),
        (lambda: logits.summarise(X, out=X), r"out: got shape \(2, 4\), expected \(2, 3\)"),
        (lambda: logits.softmax(X.double()), "x: got torch.float64"),
        (lambda: logits.log_softmax(X.T), "x: got strides"),
        (lambda: embedding(IDS.float(), X), "ids: got torch.float32, expected int32 or int64"),
        (lambda: embedding(IDS[None], X), r"ids: got shape \(1, 2\)"),
        (lambda: embedding(IDS, X[0]), r"table: got shape \(4,\), expected \(V, D\)"),
        (lambda: embedding(IDS, X.T), "table: got strides"),
        (lambda: embedding(IDS, X.double()), "table: got torch.float64"),
        (lambda: embedding(IDS, X, out=X.half()), "out: got torch.float16"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
