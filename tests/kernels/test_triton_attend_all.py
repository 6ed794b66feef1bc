"""Boards on profile ``native``: attention of every row to every row, and a whole network's step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from recursive_models import CONFIGS, boards_of, weights_of

from benchmarks.interpreter import install

install()

from detinfer import ops  # noqa: E402
from detinfer.kernels import reference_native  # noqa: E402
from detinfer.kernels.triton.attend_all import attend_all  # noqa: E402
from detinfer.recursive.contract_kernels import ContractKernels, pack_weights  # noqa: E402
from detinfer.recursive.network import Network  # noqa: E402
from detinfer.recursive.tasks import TASKS  # noqa: E402
from detinfer.testing import (  # noqa: E402
    assert_same_bits,
    rounded_normal,
    same_bits,
    to_torch,
)

NATIVE = ops.Profile("native", torch.device("cpu"))


def expected(q, k, v, scale, dtype):
    """The reference's result of one board's head. [rows, dim]"""
    last = np.full(len(q), len(k) - 1)
    by_head = (x[:, None] for x in (q, k, v))
    queries, keys, values = by_head
    return reference_native.attention(queries, last, keys, values, scale, dtype=dtype)[:, 0]


@pytest.mark.parametrize(
    ("rows", "dim", "dtype"),
    [
        (1, 16, "float32"),
        (17, 7, "float32"),
        (64, 8, "bfloat16"),
        (81, 24, "float32"),
        (81, 24, "bfloat16"),
        (513, 16, "float32"),
    ],
)
def test_a_board_is_the_references(rows, dim, dtype):
    rng = np.random.default_rng(rows)
    q, k, v = (rounded_normal(rng, (2, rows, dim), dtype=dtype) for _ in range(3))
    given = (to_torch(x).to(getattr(torch, dtype)) for x in (q, k, v))
    got = attend_all(*given, 0.3)
    for board in range(2):
        assert_same_bits(got[board].float(), expected(q[board], k[board], v[board], 0.3, dtype))


def test_keys_in_another_order_of_blocks_give_other_bits():
    rng = np.random.default_rng(3)
    q, k, v = (to_torch(rounded_normal(rng, (1, 130, 16))) for _ in range(3))
    order = torch.cat([torch.arange(64, 130), torch.arange(64)])
    assert not same_bits(attend_all(q, k, v, 0.3), attend_all(q, k[:, order], v[:, order], 0.3))


def test_shapes_are_kept_and_those_that_differ_refused():
    x = torch.zeros(2, 3, 5, 16)
    assert attend_all(x, x, x, 1.0).shape == x.shape
    assert attend_all(x[:0], x[:0], x[:0], 1.0).shape == (0, 3, 5, 16)
    with pytest.raises(ValueError, match=r"v: got shape \(2, 3, 4, 16\), expected \(2, 3, 5, 16\)"):
        attend_all(x, x, x[:, :, :4], 1.0)


def step(config, weights, boards):
    """Return a step's results: draft, scratchpad, logits, verdicts."""
    units = torch.from_numpy(TASKS[config.task].units) if config.mixer == "units" else None
    network = Network(config, pack_weights(weights), ContractKernels(), units)
    y, z = network.start(len(boards))
    for _ in range(config.cycles):
        y, z = network.recursion(network.embed(boards), y, z)
    return [y, z, *network.heads(y)]


@pytest.mark.parametrize("name", ["units", "attention with a prefix", "mlp"])
def test_a_step_of_a_network_is_near_the_other_profiles_and_a_boards_bits_are_its_own(name):
    config = replace(CONFIGS[name], cycles=1, updates=1)  # more would spread the profiles apart
    weights, boards = weights_of(config), torch.from_numpy(boards_of(config, 3)).int()
    with torch.inference_mode():
        with ops.use(NATIVE):
            native = step(config, weights, boards)
            alone = step(config, weights, boards[1:2])
        portable = step(config, weights, boards)
    for whole, one, other in zip(native, alone, portable, strict=True):
        assert_same_bits(whole[1:2], one)
        assert torch.allclose(whole, other, rtol=1e-4, atol=1e-4)
    assert not same_bits(native[0], portable[0])  # or one profile stood in for the other
