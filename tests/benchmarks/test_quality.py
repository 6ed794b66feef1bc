"""Losses and divergences are those of the distributions they are told of."""

from __future__ import annotations

import torch

from benchmarks.quality.__main__ import BASELINES, WINDOW, measure


def test_equal_models_do_not_diverge_and_a_uniform_one_loses_the_logarithm() -> None:
    uniform = torch.zeros(WINDOW, 8)
    skewed = uniform.clone()
    skewed[:, 3] = 20.0
    models = {name: lambda ids: uniform for name in ("published", "binary32", "llama.cpp")}
    found = measure(models | {"packed": lambda ids: skewed}, [[3] * WINDOW, [1] * WINDOW])
    assert found.keys() == BASELINES.keys()
    assert abs(found["binary32"]["loss"] - torch.tensor(8.0).log()) < 1e-6
    assert found["binary32"]["kl"] == found["llama.cpp"]["kl"] == 0
    assert abs(found["packed"]["loss"] - 10.0) < 1e-3  # 0 where it is right, 20 where it is wrong
    assert abs(found["packed"]["kl"] - (20 * 7 / 8 - torch.tensor(8.0).log())) < 1e-3
    assert found["llama.cpp"]["same"] == 1
