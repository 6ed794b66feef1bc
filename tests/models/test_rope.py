"""Rotary tables: correctly rounded, pinned, and laid out as each class lays them out."""

from __future__ import annotations

import copy
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from tiny_models import MAX_LEN, TinyRunner, make_batch, tiny_config, tiny_model, tokens
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from detinfer.errors import UnsupportedModelError
from detinfer.models import rope_table
from detinfer.models.rope import patch_rotary
from detinfer.models.rope_frequencies import RopeSpec, rope_frequencies
from detinfer.models.rope_table import build_rope_table, cos_sin, round_to_binary32

SCALED = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    },
}


def exact(function: Any, angle: np.float32) -> np.float32:
    with mpmath.workprec(160):
        return round_to_binary32(function(mpmath.mpf(float(angle))))


def hard_angles() -> np.ndarray:
    """Angles nearest to multiples of pi/2, powers of two, the smallest and the largest."""
    turns = np.arange(1, 2000, 7) * (np.pi / 2)
    edges = [0.0, 1e-12, 1e-6, 0.5, np.pi / 4, (1 << 20) - 1, np.nextafter(2.0**20, 0)]
    powers = 2.0 ** np.arange(-20, 20)
    angles = np.concatenate([turns, edges, powers]).astype(np.float32)
    return angles[angles < 2**20]


@pytest.mark.parametrize("seed", [0, 1])
def test_cos_and_sin_are_correctly_rounded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spread = [rng.uniform(0, 2**20, 1500), 10 ** rng.uniform(-9, 6, 1500), rng.uniform(0, 7, 1500)]
    angles = np.concatenate([*spread, hard_angles()]).astype(np.float32)
    cos, sin = cos_sin(angles)
    for got, function in ((cos, mpmath.cos), (sin, mpmath.sin)):
        expected = np.array([exact(function, a) for a in angles])
        np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32))


def test_binary64_evaluation_errs_by_less_than_a_quarter_of_its_bound() -> None:
    rng = np.random.default_rng(2)
    angles = np.concatenate([hard_angles(), rng.uniform(0, 2**20, 2000).astype(np.float32)])
    values = rope_table._evaluate(angles.astype(np.float64))
    with mpmath.workprec(160):
        for got, function in zip(values, (mpmath.cos, mpmath.sin), strict=True):
            for value, angle in zip(got, angles, strict=True):
                true = function(mpmath.mpf(float(angle)))
                assert (
                    abs(mpmath.mpf(float(value)) - true) <= abs(true) * rope_table._ERROR_BOUND / 4
                )


def test_near_ties_are_decided_by_mpmath(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = np.linspace(0.1, 900, 4000, dtype=np.float32)
    expected = cos_sin(angles)
    asked: list[Any] = []

    def counting(value: Any) -> np.float32:
        asked.append(value)
        return round_to_binary32(value)

    monkeypatch.setattr(rope_table, "round_to_binary32", counting)
    monkeypatch.setattr(rope_table, "_ERROR_BOUND", 2.0**-30)  # one value in a hundred is too near
    for got, reference in zip(cos_sin(angles), expected, strict=True):
        np.testing.assert_array_equal(got.view(np.int32), reference.view(np.int32))
    assert len(asked) > 10


@pytest.mark.parametrize("angle", [-1.0, 2.0**20, np.inf, np.nan])
def test_angles_out_of_range_are_named(angle: float) -> None:
    with pytest.raises(ValueError, match="angles: got"):
        cos_sin(np.array([angle], dtype=np.float32))


def test_default_frequencies_are_correctly_rounded() -> None:
    spec = RopeSpec({"rope_theta": 10000.0}, 32, 2048, 2048)
    inv_freq, factor = rope_frequencies(spec)
    with mpmath.workdps(40):
        expected = [
            round_to_binary32(mpmath.mpf(10000) ** (-mpmath.mpf(i) / 32)) for i in range(32)
        ]
    np.testing.assert_array_equal(inv_freq, np.array(expected))
    assert factor == 1.0
    own = (1.0 / (10000.0 ** (torch.arange(0, 64, 2, dtype=torch.float) / 64))).numpy()
    assert (own != inv_freq).any()  # torch's are not: the table is worth building


def test_angle_is_one_binary32_product() -> None:
    inv_freq = np.array([0.1, 0.7], dtype=np.float32)
    table = build_rope_table(inv_freq, 50, 1.25)
    for position in (1, 3, 49):
        angle = np.float32(position) * inv_freq[1]
        got = table.cos[position, 1].item()
        assert got == exact(mpmath.cos, angle) * np.float32(1.25)


@pytest.mark.parametrize("rope_type", sorted(SCALED))
def test_scaled_types_match_transformers(rope_type: str) -> None:
    params = {"rope_type": rope_type, "rope_theta": 10000.0, **SCALED[rope_type]}
    config = tiny_config("llama", rope_parameters=params)
    theirs = LlamaRotaryEmbedding(config)
    ours = copy.deepcopy(theirs)
    pins = patch_rotary(ours, "rotary", MAX_LEN)
    assert pins["rotary"].startswith(f"{rope_type}:")
    # The longest position is in the batch, so Hugging Face takes the frequencies we are pinned to.
    positions = torch.tensor([[0, 1, 5, 17, MAX_LEN - 1]])
    with torch.inference_mode():
        for a, b in zip(
            ours(torch.zeros(1), positions), theirs(torch.zeros(1), positions), strict=True
        ):
            torch.testing.assert_close(a[:, :4], b[:, :4], atol=2e-5, rtol=0)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_pinned_types_do_not_see_the_longest_position(rope_type: str) -> None:
    params = {"rope_type": rope_type, "rope_theta": 10000.0, **SCALED[rope_type]}
    embedding = LlamaRotaryEmbedding(tiny_config("llama", rope_parameters=params))
    own = copy.deepcopy(embedding)
    patch_rotary(embedding, "rotary", MAX_LEN)
    short, long = torch.tensor([[2, 3]]), torch.tensor([[2, 3, 3 * MAX_LEN]])
    beside = torch.tensor([[2, 3, MAX_LEN - 1]])
    x = torch.zeros(1)
    with torch.inference_mode():
        assert torch.equal(embedding(x, short)[0], embedding(x, beside)[0][:, :2])
        assert not torch.equal(own(x, short)[0], own(x, long)[0][:, :2])  # what pinning is for


def test_pin_follows_the_model_length_only_where_the_bits_do() -> None:
    pins = {}
    for rope_type in ("longrope", "default"):
        params = {"rope_type": rope_type, "rope_theta": 10000.0, **SCALED.get(rope_type, {})}
        config = tiny_config("llama", rope_parameters=params)
        pins[rope_type] = [
            patch_rotary(LlamaRotaryEmbedding(config), "r", length)["r"] for length in (48, 200)
        ]
    assert pins["default"][0] == pins["default"][1]
    assert pins["longrope"][0] != pins["longrope"][1]


@pytest.mark.parametrize(
    ("architecture", "layout", "keeps_float32"),
    [
        ("llama", "halves", False),
        ("cohere", "pairs", False),
        ("gpt_oss", "single", False),
        ("olmo2", "halves", True),
    ],
)
def test_layouts_are_seen_from_the_class(
    architecture: str, layout: str, keeps_float32: bool
) -> None:
    model = tiny_model(tiny_config(architecture))
    rotary = model.model.rotary_emb
    patch_rotary(rotary, "rotary", 32)
    assert (rotary.rope_layout, rotary.rope_keeps_float32) == (layout, keeps_float32)
    cos, _ = rotary(torch.zeros(1, dtype=torch.bfloat16), torch.tensor([[3]]))
    assert cos.dtype == (torch.float32 if keeps_float32 else torch.bfloat16)


def test_frequencies_that_are_not_the_formula_are_refused() -> None:
    embedding = LlamaRotaryEmbedding(tiny_config("llama"))
    embedding.inv_freq[2] *= 1.001
    with pytest.raises(UnsupportedModelError, match=r"rotary \(LlamaRotaryEmbedding\).*default"):
        patch_rotary(embedding, "rotary", 32)


def test_scaled_phimoe_is_refused_by_name() -> None:
    count = 6
    params = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * count,
        "long_factor": [2.0] * count,
        "short_mscale": 1.1,
        "long_mscale": 1.2,
    }
    model = tiny_model(tiny_config("phimoe", rope_parameters=params))
    with pytest.raises(UnsupportedModelError, match=r"rotary_emb \(PhimoeRotaryEmbedding\)"):
        TinyRunner(model)


def test_a_longrope_model_is_independent_of_a_longer_neighbour() -> None:
    params = {"rope_type": "longrope", "rope_theta": 10000.0, **SCALED["longrope"]}
    runner = TinyRunner(tiny_model(tiny_config("llama", rope_parameters=params)))
    prompt, neighbour = (tokens(6, 0), 0, [1]), (tokens(100, 1), 0, [2, 3])
    alone = runner.logits(make_batch([prompt]))
    together = runner.logits(make_batch([prompt, neighbour]))[:6]
    np.testing.assert_array_equal(alone.view(np.int32), together.view(np.int32))
