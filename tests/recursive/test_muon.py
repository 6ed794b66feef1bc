"""Our Muon is PyTorch's, but for the precision it orthogonalises in."""

from __future__ import annotations

import pytest
import torch

from detinfer.recursive.training.muon import Muon, orthogonalized

SHAPES = (96, 32), (32, 96), (40, 40)


def drawn(seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random) for shape in SHAPES]


@pytest.mark.parametrize("matrix", drawn(0)[:2], ids=["tall", "wide"])
def test_singular_values_become_nearly_one(matrix):
    assert torch.linalg.svdvals(matrix).max() > 5
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_matrices_move_as_by_pytorchs():
    ours, theirs = drawn(0), drawn(0)
    one = Muon(ours, 0.95, 0.1)
    other = torch.optim.Muon(theirs, momentum=0.95, weight_decay=0.1)
    for step in range(4):
        for optimiser, weights in ((one, ours), (other, theirs)):
            for weight, gradient in zip(weights, drawn(step + 1), strict=True):
                weight.grad = gradient
            optimiser.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimiser.step()
    for mine, his, start in zip(ours, theirs, drawn(0), strict=True):
        way = (his - start).norm()
        assert 0 < (mine - his).norm() < 0.02 * way, "bfloat16 has eight bits"
        assert (mine - start).norm() > 0.5 * way
