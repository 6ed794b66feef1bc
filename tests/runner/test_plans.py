"""Two plans for one forward: the compiled step gives the bits of the model's own modules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    VOCAB,
    TinyRunner,
    make_batch,
    tiny_config,
    tiny_model,
    tokens,
)

from detinfer import ops
from detinfer.kernels.cpu.fused.table import FACTORS
from detinfer.runner.llama_pattern import PatternMismatch
from detinfer.runner.plans import plans_agree
from detinfer.runner.portable_fused import FusedStep
from detinfer.testing import assert_same_bits

# Overrides that keep joined weights cut at whole panels; the rest runs at awkward sizes.
FUSED: dict[str, dict[str, Any]] = {
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "granite": {},
    "llama": {},
    "mistral": {},
    "olmo2": {},
    "olmo3": {},
    "phi3": {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 128},
    "qwen2": {},
    "qwen3": {},
    "seed_oss": {},
    "smollm3": {},
}


def build(architecture: str) -> tuple[TinyRunner, FusedStep]:
    overrides = FUSED.get(architecture, {})
    runner = TinyRunner(tiny_model(tiny_config(architecture, **overrides)))
    return runner, FusedStep(runner.model, runner.report.calls, runner.cache)


def run(fused: FusedStep, batch: Any) -> Any:
    return run_both(fused, batch)[0]


def run_both(fused: FusedStep, batch: Any) -> tuple[Any, Any]:
    """Logits and final hidden states."""
    out = np.full((batch.logit_rows.size, VOCAB), np.nan, np.float32)
    tensors = ops.BatchTensors(batch.positions, batch.query_start, batch.block_tables)
    rows = batch.logit_rows, out, batch.hidden_rows
    return out, fused.forward(batch.input_ids, tensors, *rows)


def agree(runner: TinyRunner, fused: FusedStep) -> bool:
    return plans_agree(runner.forward, lambda batch: torch.from_numpy(run(fused, batch)), VOCAB)


# The pattern's modules around another rotation or other layers without positions.
LOOKALIKES = ("ernie4_5", "exaone4", "helium")

# Steps of many rows, few rows and one; prompts past a page, past the window and in chunks.
STEPS = [
    [(tokens(100, 0), 0, [3, 5]), (tokens(7, 1), 0, [9]), (tokens(12, 2), 0, [2])],
    [([5], 100, [3, 5]), (tokens(9, 3), 7, [9]), ([7], 12, [2])],
    [([6], 101, [3, 5])],
    [([1], 102, [3, 5]), ([2], 16, [9])],
]


@pytest.mark.parametrize("architecture", sorted(FUSED))
def test_plans_give_equal_bits(architecture: str) -> None:
    runner, fused = build(architecture)
    for step in STEPS:
        batch = make_batch(step)
        expected = runner.forward(batch)
        assert_same_bits(run(fused, batch), expected)


@pytest.mark.parametrize("architecture", sorted(FUSED))
def test_plans_give_equal_hidden_states_beside_equal_logits(architecture: str) -> None:
    runner, fused = build(architecture)
    for step in STEPS:
        whole = make_batch(step)
        wanted = whole.logit_rows % 3 == 0  # the only row of a step of one among them
        rows = {"logit_rows": whole.logit_rows[~wanted], "hidden_rows": whole.logit_rows[wanted]}
        batch = replace(whole, **rows)
        logits, states = run_both(fused, batch)
        assert_same_bits(logits, runner.forward(batch))
        assert_same_bits(states, runner.hidden)


def test_plans_give_equal_bits_in_a_large_step() -> None:
    runner, fused = build("llama")
    step = [(tokens(133, i), 0, [3 * i + 1, 3 * i + 2, 3 * i + 3]) for i in range(3)]
    batch = make_batch(step)  # 399 rows: four blocks, the last one shorter
    expected = runner.forward(batch)
    assert_same_bits(run(fused, batch), expected)
    alone = make_batch(step[2:])
    assert_same_bits(run(fused, alone), expected[266:])


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - set(FUSED) - set(LOOKALIKES)))
def test_other_patterns_are_not_matched(architecture: str) -> None:
    with pytest.raises(PatternMismatch):
        build(architecture)


@pytest.mark.parametrize("architecture", LOOKALIKES)
def test_a_lookalike_is_told_by_its_bits(architecture: str) -> None:
    runner, fused = build(architecture)
    assert not agree(runner, fused)


@pytest.mark.parametrize("tokens", [1, 4, 20])
def test_a_last_bit_in_steps_of_one_size_is_told(tokens: int) -> None:
    """A step of one token may have kernels of its own."""
    runner, fused = build("llama")

    def wrong(batch: Any) -> torch.Tensor:
        out = run(fused, batch)
        if len(batch.input_ids) == tokens:
            out.view(np.int32)[-1, 7] ^= 1
        return torch.from_numpy(out)

    assert not plans_agree(runner.forward, wrong, VOCAB)


@pytest.mark.parametrize("factor", ["eps", "scale", "residual"])
def test_a_wrong_constant_is_told_by_its_bits(factor: str) -> None:
    runner, fused = build("llama")
    assert agree(runner, fused)
    fused.factors[FACTORS.index(factor)] *= np.float32(1.001)
    assert not agree(runner, fused)
