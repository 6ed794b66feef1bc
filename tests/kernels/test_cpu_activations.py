"""The compiled elementwise kernels: the reference's bits over the whole range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_inputs import STOCK, whole_range

from detinfer import ops
from detinfer.kernels import reference
from detinfer.testing import (
    assert_same_bits,
    rounded_normal,
    run,
    same_bits,
    surrounded,
    thread_count,
    to_torch,
)

F32 = np.float32
NAMES = sorted(reference.ACTIVATIONS)
GATES = {"silu": ops.silu_mul, "gelu_tanh": ops.gelu_tanh_mul}


@pytest.mark.parametrize("name", NAMES)
def test_activation_equals_the_reference_over_the_whole_range(name):
    x = whole_range(49999, 20_000)
    got = run(ops.activation, name, torch.from_numpy(x))
    assert_same_bits(got, reference.ACTIVATIONS[name](x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_activation_rounds_once_to_16_bits(name, dtype):
    x = torch.from_numpy(whole_range(49999, 20_000)).to(getattr(torch, dtype))
    got = run(ops.activation, name, x)
    assert got.dtype == x.dtype
    exact = reference.ACTIVATIONS[name](x.float().numpy())
    assert_same_bits(got.float(), reference.round_to(exact, dtype))


@pytest.mark.parametrize("name", NAMES)
def test_activation_at_every_length_of_vector_tail(name):
    x = np.abs(rounded_normal(np.random.default_rng(1), (130,)))
    expected = reference.ACTIVATIONS[name](x)
    for length in (*range(1, 35), 63, 64, 65, 127, 128, 129):
        got = run(ops.activation, name, surrounded(to_torch(x[:length])))
        assert_same_bits(got, expected[:length], f"length {length}")
        got = run(ops.activation, name, to_torch(x[130 - length :]))
        assert_same_bits(got, expected[130 - length :], f"last {length}")


@pytest.mark.parametrize("name", NAMES)
def test_torch_fails_the_same_comparison(name):
    x = np.abs(rounded_normal(np.random.default_rng(2), (2000,), scale=2.0))
    assert not same_bits(STOCK[name](to_torch(x)), reference.ACTIVATIONS[name](x))


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gated_activation_rounds_after_each_step(name, dtype):
    rng = np.random.default_rng(3)
    for shape in ((1, 1), (3, 65), (2, 5, 1000)):
        gate, up = (rounded_normal(rng, shape, dtype, scale=3.0) for _ in range(2))
        got = run(GATES[name], surrounded(to_torch(gate, dtype)), to_torch(up, dtype))
        assert_same_bits(got.float(), reference.gated(name, gate, up, dtype))


@pytest.mark.parametrize("name", GATES)
def test_gated_activation_over_the_whole_range(name):
    gate = whole_range(49999, 20_000)
    up = np.roll(gate, 7)
    got = run(GATES[name], torch.from_numpy(gate), torch.from_numpy(up))
    assert_same_bits(got, reference.gated(name, gate, up))


def test_threads_do_not_change_bits():
    x = to_torch(rounded_normal(np.random.default_rng(4), (257, 1000)))
    for op in (lambda: run(ops.activation, "gelu", x), lambda: run(ops.silu_mul, x, x)):
        with thread_count(1):
            one = op()
        with thread_count(2):
            assert_same_bits(op(), one)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"up: got shape \(2, 4\), expected \(2, 3\)"):
        ops.silu_mul(torch.ones(2, 3), torch.ones(2, 4))
