"""The recursive model's network over the contract's kernels: the reference's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recursive_models import CONFIGS, boards_of, reference_model, weights_of

from detinfer import ops
from detinfer.kernels import reference_recursive
from detinfer.recursive.model import RecursiveModel
from detinfer.testing import assert_same_bits, rounded_normal, same_bits, to_torch


@pytest.mark.parametrize("rows", [1, 2, 9, 16, 17, 63, 64, 65, 97, 130, 513])
def test_attention_of_all_to_all(rows):
    rng = np.random.default_rng(rows)
    dim = (16, 24, 7)[rows % 3]
    q, k, v = (rounded_normal(rng, (2, 2, rows, dim)) for _ in range(3))
    got = ops.attend_all(*(to_torch(x) for x in (q, k, v)), 0.3)
    for board in range(2):
        by_row = (x[board].transpose(1, 0, 2) for x in (q, k, v))
        expected = reference_recursive.attend_all(*by_row, 0.3)
        assert_same_bits(got[board].transpose(0, 1), expected)


def test_shapes_that_differ_are_refused():
    x = torch.zeros(1, 3, 4)
    with pytest.raises(ValueError, match=r"v: got shape \(1, 2, 4\), expected \(1, 3, 4\)"):
        ops.attend_all(x, x, x[:, :2], 1.0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_step_is_the_references(config):
    weights = weights_of(config)
    model = RecursiveModel("test", config, weights, plan="modules")
    boards = boards_of(config, 2)
    y, z = model.start(2)
    expected = [(y[i].copy(), z[i].copy()) for i in range(2)]
    oracle = reference_model(config, weights)
    for _ in range(2):
        grids, q = model.step(boards, y, z)
        for i in range(2):
            *expected[i], logits, verdict = oracle.step(boards[i], *expected[i])
            assert_same_bits(y[i], expected[i][0])
            assert_same_bits(z[i], expected[i][1])
            assert_same_bits(q[i : i + 1], np.array([verdict]))
            assert np.array_equal(grids[i], logits.argmax(-1))


def test_the_comparison_sees_another_order_of_additions():
    config = CONFIGS["units"]
    weights = weights_of(config)
    oracle = reference_model(config, weights)
    y, z = (np.tile(weights[name].numpy(), (config.cells, 1)) for name in ("H_init", "L_init"))
    x = oracle._embed(boards_of(config, 1)[0])
    assert not same_bits(oracle._layers(z + (y + x)), oracle._layers((z + y) + x))
