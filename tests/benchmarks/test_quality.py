"""Losses and divergences are those of the distributions they are told of."""

from __future__ import annotations

from xml.etree import ElementTree

import torch

from benchmarks.quality.__main__ import (
    BASELINES,
    KL,
    PUBLISHED,
    TEXTS,
    WINDOW,
    measure,
    parts,
    picture,
)


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


def test_the_page_says_whether_the_default_model_is_within_its_bounds() -> None:
    figures = dict.fromkeys(("loss_binary32", *KL.values()), 0.01234)
    row = {"format": PUBLISHED, **figures, "packed_more_percent": 0.12}
    rows = [row | {"packed_above_llama_cpp_percent": 0.61}, row | {"format": "Q8_0"}]
    text = "\n".join(parts(rows, {"tokens": 8192, "texts": TEXTS}))
    assert "8,192 tokens of docs/server.md" in text
    assert "| Q4_1 | 0.0123 | 0.0123 | 0.0123 | 0.0123 | 0.120 | 0.610 |" in text
    assert "packed more percent: 0.12, within 0.3." in text
    assert "packed above llama cpp percent: 0.61, **not within** 0.5." in text
    svg = ElementTree.fromstring(picture(rows))
    assert sum(one.text == "123" for one in svg.iter()) == 2 * len(KL)
