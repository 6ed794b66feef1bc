"""The GPU's elementwise kernels in Triton's interpreter: the reference's bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from benchmarks.interpreter import install

install()

from guarded_tensors import assert_guards_untouched, guarded, run  # noqa: E402
from kernel_inputs import STOCK, whole_range  # noqa: E402

from detinfer.kernels import constants, reference, reference_native  # noqa: E402
from detinfer.kernels.triton import activation, numeric  # noqa: E402
from detinfer.testing import (  # noqa: E402
    DTYPES,
    assert_rows_independent,
    assert_same_bits,
    rounded_normal,
    same_bits,
    surrounded,
    to_torch,
)

F32 = np.float32
NAMES = sorted(reference.ACTIVATIONS)
GATES = {"silu": activation.silu_mul, "gelu_tanh": activation.gelu_tanh_mul}


@pytest.fixture
def large_blocks(monkeypatch):
    """Few programs where a test's values are many: the interpreter pays by the program."""
    monkeypatch.setattr(activation, "block_of", lambda elements: 1 << 16)


@pytest.mark.usefixtures("large_blocks")
@pytest.mark.parametrize("name", NAMES)
def test_activation_equals_the_reference_over_the_whole_range(name):
    x = whole_range(99991, 10_000)
    assert_same_bits(
        run(activation.activation, name, torch.from_numpy(x)), reference.ACTIVATIONS[name](x)
    )


@pytest.mark.usefixtures("large_blocks")
def test_exp_keeps_its_bits_where_its_exponent_is_added_as_an_integer():
    """Where results are smallest and largest, and where the power of two steps."""
    steps = np.arange(-4000, 4000, dtype=np.int32)
    half_logs = (np.arange(-126, 129) + F32(0.5)) * F32(np.log(2))
    edges = np.append(half_logs, [constants.EXP_LOW, constants.EXP_HIGH]).astype(F32)
    wide = [(edge.view(np.int32) + steps).view(F32) for edge in edges[-2:]]
    near = (edges[:, None].view(np.int32) + np.arange(-40, 40, dtype=np.int32)).view(F32)
    x = np.concatenate([*wide, near.reshape(-1)])
    got = run(activation.activation, "exp", torch.from_numpy(x))
    assert_same_bits(got, reference.exp32(x))
    assert got[got > 0].min() >= 2.0**-126


@pytest.mark.usefixtures("large_blocks")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_activation_rounds_once_to_16_bits(name, dtype):
    x = torch.from_numpy(whole_range(99991, 10_000)).to(DTYPES[dtype])
    got = run(activation.activation, name, x)
    assert got.dtype == x.dtype
    exact = reference.ACTIVATIONS[name](x.float().numpy())
    assert_same_bits(got.float(), reference.round_to(exact, dtype))


@pytest.mark.parametrize("name", ["gelu", "silu"])
@pytest.mark.parametrize("length", [1, 2, 511, 512, 513, 1030])
def test_activation_at_every_block_tail(name, length):
    x = rounded_normal(np.random.default_rng(1), (length,))
    got = run(activation.activation, name, surrounded(to_torch(x)))
    assert_same_bits(got, reference.ACTIVATIONS[name](x))


@pytest.mark.parametrize("name", NAMES)
def test_torch_fails_the_same_comparison(name):
    x = np.abs(rounded_normal(np.random.default_rng(2), (2000,), scale=2.0))
    assert not same_bits(STOCK[name](to_torch(x)), reference.ACTIVATIONS[name](x))


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 65, 700])
def test_gated_activation_rounds_after_each_step(name, dtype, width):
    rng = np.random.default_rng(3)
    both = rounded_normal(rng, (3, 2 * width), dtype, scale=3.0)
    gate, up = both[:, :width], both[:, width:]
    expected = reference.gated(name, gate, up, dtype)
    rows = to_torch(both, dtype)
    views = {"halves of one buffer": (rows[:, :width], rows[:, width:])}
    views["contiguous"] = tuple(surrounded(t) for t in views["halves of one buffer"])
    views["one of each"] = (views["contiguous"][0], rows[:, width:])
    views["three dimensions"] = tuple(t[:, None] for t in views["contiguous"])
    for what, (g, u) in views.items():
        got = run(GATES[name], g, u)
        assert got.is_contiguous()
        assert_same_bits(got.float(), expected.reshape(g.shape), what)


@pytest.mark.parametrize("name", GATES)
def test_one_rounding_fewer_fails_the_same_comparison(name):
    gate, up = (rounded_normal(np.random.default_rng(s), (9, 65), "bfloat16") for s in (4, 5))
    once = reference.round_to(reference.ACTIVATIONS[name](gate) * up, "bfloat16")
    assert not same_bits(once, reference.gated(name, gate, up, "bfloat16"))


@pytest.mark.usefixtures("large_blocks")
@pytest.mark.parametrize("name", GATES)
def test_gated_activation_over_the_whole_range(name):
    gate = whole_range(99991, 10_000)
    up = np.roll(gate, 7)
    got = run(GATES[name], torch.from_numpy(gate), torch.from_numpy(up))
    assert_same_bits(got, reference.gated(name, gate, up))


@pytest.mark.parametrize("block", [256, 2048])
def test_blocks_do_not_change_bits(monkeypatch, block):
    x = to_torch(rounded_normal(np.random.default_rng(6), (5, 2, 700)))
    first = run(activation.activation, "gelu", x), run(activation.silu_mul, x[:, 0], x[:, 1])
    monkeypatch.setattr(activation, "block_of", lambda elements: block)
    assert_same_bits(run(activation.activation, "gelu", x), first[0])
    assert_same_bits(run(activation.silu_mul, x[:, 0], x[:, 1]), first[1])


def test_rows_are_independent():
    rows = to_torch(rounded_normal(np.random.default_rng(7), (9, 130)))
    for op in (
        lambda x: activation.activation("tanh", x),
        lambda x: activation.silu_mul(x[:, :65], x[:, 65:]),
        lambda x: activation.gelu_tanh_mul(x[:, :65], x[:, 65:]),
    ):
        assert_rows_independent(op, rows)


def test_a_function_that_knows_the_row_count_is_found():
    def op(x):  # torch's tanh has other bits
        return torch.tanh(x) if len(x) > 4 else activation.activation("tanh", x)

    with pytest.raises(AssertionError, match="elements differ"):
        assert_rows_independent(op, to_torch(rounded_normal(np.random.default_rng(7), (9, 130))))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_broken_neighbour_changes_nothing(bad):
    gate = rounded_normal(np.random.default_rng(8), (5, 65))
    dirty = gate * np.where(np.arange(5) == 2, F32(1e4), F32(1))[:, None]
    dirty[2, 7] = bad
    got = run(activation.silu_mul, torch.from_numpy(dirty), to_torch(gate))
    assert_same_bits(got, reference.gated("silu", dirty, gate))
    clean = run(activation.silu_mul, to_torch(gate), to_torch(gate))
    others = np.arange(5) != 2
    assert_same_bits(got[others], clean[others])


def test_a_given_output_is_filled_and_returned():
    x = to_torch(rounded_normal(np.random.default_rng(9), (3, 65), "bfloat16"), "bfloat16")
    for op in (
        lambda **out: activation.activation("erf", x, **out),
        lambda **out: activation.silu_mul(x, x, **out),
        lambda **out: activation.gelu_tanh_mul(x, x, **out),
    ):
        out, buffer = guarded((3, 65), torch.bfloat16)
        assert op(out=out) is out
        assert_guards_untouched(buffer)
        assert_same_bits(out, op())


def test_no_elements_give_none():
    for shape in ((0,), (0, 65), (3, 0)):
        x = torch.ones(shape)
        assert activation.activation("exp", x).shape == shape
        assert activation.silu_mul(x, x).shape == shape
    assert activation.silu_mul(torch.ones(0, 6)[:, :3], torch.ones(0, 6)[:, 3:]).shape == (0, 3)


X = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: activation.activation("relu", X), "name: got 'relu', expected one of erf, exp"),
        (lambda: activation.activation("exp", X.double()), "x: got torch.float64, expected fl"),
        (lambda: activation.activation("exp", X.T), "x: got strides"),
        (lambda: activation.activation("exp", X[None, :, :2].expand(2, -1, -1)), "x: got strides"),
        (lambda: activation.activation("exp", X, out=X[:1]), r"out: got shape \(1, 4\)"),
        (lambda: activation.silu_mul(X, X[:1]), r"up: got shape \(1, 4\), expected \(2, 4\)"),
        (lambda: activation.silu_mul(X, X.half()), "up: got torch.float16, expected torch.float3"),
        (lambda: activation.gelu_tanh_mul(X, X, out=X.half()), "out: got torch.float16"),
        (lambda: activation.silu_mul(torch.ones(4, 2).T, X), "gate: got strides"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@triton.jit
def adjacent_kernel(x, out, ROWS: tl.constexpr, LANES: tl.constexpr):
    place = tl.arange(0, ROWS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    tl.store(out + tl.arange(0, ROWS), numeric.adjacent_sum(tl.load(x + place), ROWS, LANES))


@pytest.mark.parametrize("lanes", [1, 2, 64, 1024])
def test_adjacent_sum_is_the_reference_s_tree(lanes):
    x = rounded_normal(np.random.default_rng(lanes), (8, lanes))
    out, buffer = guarded((8,), torch.float32)
    adjacent_kernel[(1,)](to_torch(x), out, 8, lanes)
    assert_same_bits(out, reference_native.adjacent_tree(x))
    assert_guards_untouched(buffer)
    assert lanes <= 2 or not same_bits(out, reference.halving_tree(x))
