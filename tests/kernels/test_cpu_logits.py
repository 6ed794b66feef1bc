"""The compiled softmax, log_softmax, argmax and checksum: the reference's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detinfer import ops
from detinfer.kernels import reference, reference_sampling
from detinfer.testing import (
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
VOCABULARIES = (1, 2, 63, 64, 65, 100, 1000, 49152, 50257)
SOFTMAXES = {"softmax": (ops.softmax, reference.softmax),
             "log_softmax": (ops.log_softmax, reference.log_softmax)}  # fmt: skip


def argmax(x):
    return run(ops.summarise, torch.from_numpy(x))[0]


def checksum(x):
    return run(ops.summarise, torch.from_numpy(x))[1]


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("size", VOCABULARIES)
def test_softmax_equals_the_reference(name, size):
    op, expected = SOFTMAXES[name]
    x = rounded_normal(np.random.default_rng(size), (3, size), scale=8.0)
    assert_same_bits(run(op, surrounded(to_torch(x))), expected(x))


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_softmax_of_16_bit_rows_is_float32(name, dtype):
    op, expected = SOFTMAXES[name]
    x = rounded_normal(np.random.default_rng(1), (2, 5, 60), dtype)
    assert_same_bits(run(op, to_torch(x, dtype)), expected(x))


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_of_extreme_rows(name):
    op, expected = SOFTMAXES[name]
    x = np.zeros((9, 70), F32)
    x[0, 3] = np.nan
    x[1, 65] = np.inf
    x[2] = -np.inf
    x[3, :60] = -np.inf
    x[4, 1] = 3e38
    x[5] = -3e38
    x[6, :11] = SPECIAL
    x[7] = np.linspace(-100, 100, 70)
    x[8] = -0.0
    assert_same_bits(run(op, torch.from_numpy(x)), expected(x))
    if name == "softmax":
        assert np.isfinite(expected(x)[3]).all()


@pytest.mark.parametrize("name", SOFTMAXES)
def test_rows_are_independent(name):
    op, _ = SOFTMAXES[name]
    x = to_torch(rounded_normal(np.random.default_rng(2), (65, 130)))
    assert_rows_independent(op, x, name)


def test_torch_fails_the_same_comparison():
    x = rounded_normal(np.random.default_rng(3), (9, 1000))
    assert not same_bits(torch.softmax(to_torch(x), -1), reference.softmax(x))
    assert not same_bits(torch.log_softmax(to_torch(x), -1), reference.log_softmax(x))


def test_threads_do_not_change_bits():
    x = to_torch(rounded_normal(np.random.default_rng(4), (65, 5000)))
    calls = [
        lambda: run(ops.softmax, x),
        lambda: run(ops.log_softmax, x),
        lambda: checksum(x.numpy()),
        lambda: argmax(x.numpy()),
    ]
    for call in calls:
        with thread_count(1):
            one = call()
        with thread_count(2):
            assert_same_bits(call(), one)


@pytest.mark.parametrize("size", VOCABULARIES)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_argmax_and_checksum_equal_the_reference(size, rows):
    x = rounded_normal(np.random.default_rng(size), (rows, size))
    assert_same_bits(argmax(x), reference_sampling.argmax(x))
    assert_same_bits(checksum(x), reference_sampling.checksum(x))


def test_argmax_takes_the_lowest_id_wherever_the_ties_lie():
    x = rounded_normal(np.random.default_rng(5), (1, 300))
    for first in range(0, 300, 7):
        tied = x.copy()
        tied[0, [first, 299, (first + 299) // 2]] = 9.0
        assert argmax(tied).tolist() == [first]
    zeros = np.array([[-0.0] * 70 + [0.0] * 70], F32)
    assert argmax(zeros).tolist() == [0]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("size", [1, 65, 1000])
def test_argmax_refuses_a_row_with_one_value_that_is_no_number(bad, size):
    x = rounded_normal(np.random.default_rng(6), (3, size))
    for place in {0, size // 2, size - 1}:
        broken = x.copy()
        broken[1, place] = bad
        assert_same_bits(argmax(broken), reference_sampling.argmax(broken))
        assert argmax(broken)[1] == -1


def test_checksum_sees_every_bit_and_every_place():
    x = rounded_normal(np.random.default_rng(7), (1, 130))
    seen = {tuple(checksum(x)[0].tolist())}
    for place in range(130):
        changed = x.copy()
        changed.view(np.uint32)[0, place] ^= 1
        seen.add(tuple(checksum(changed)[0].tolist()))
    seen.add(tuple(checksum(np.ascontiguousarray(x[:, ::-1]))[0].tolist()))
    assert len(seen) == 132


def test_checksum_counts_every_nan_alike():
    x = np.array([[0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0x80000000]], np.uint32).view(F32)
    assert_same_bits(checksum(x), reference_sampling.checksum(x))
    same = np.array([[np.nan, np.nan, np.nan, -0.0]], F32)
    assert_same_bits(checksum(x), checksum(same))


@pytest.mark.parametrize("size", [1, 65, 1000])
def test_argmax_never_takes_a_logit_of_minus_infinity(size):
    x = rounded_normal(np.random.default_rng(7), (size + 1, size))
    for i in range(size):
        x[i, : i + 1] = -np.inf
    x[size] = -np.inf
    x[size, size // 2] = -3.4028235e38
    assert_same_bits(argmax(x), reference_sampling.argmax(x))
    assert argmax(x)[size - 1 :].tolist() == [-1, size // 2]
