"""A Hugging Face model run from blocks made of its weights: rule 1q bit for bit, in both plans."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from folders import load, write_folder
from numpy_llama import NumpyLlama
from transformers import AutoConfig

from detinfer.batch import Batch
from detinfer.checkpoint.loader import resolve_model
from detinfer.config import QUANTIZE
from detinfer.runner.portable import ModelRunner
from detinfer.testing import assert_same_bits, same_bits

IDS = [5, 17, 3, 99, 42, 7, 126, 1, 8, 90, 61, 33, 12, 12, 100, 4, 77, 128, 31]


def write(folder: Path, architecture: str = "llama", tied: bool = False, **overrides: Any) -> Path:
    """A model with rows of 256, and of 96; its config.json has every field."""
    write_folder(
        folder,
        architecture,
        hidden_size=256,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=tied,
        **overrides,
    )
    config = AutoConfig.from_pretrained(folder)
    config.architectures = None
    config.to_json_file(folder / "config.json", use_diff=False)
    return folder


def feed(runner: ModelRunner, pieces: list[int]) -> npt.NDArray[np.float32]:
    """Logits of all positions, fed piece by piece on fresh pages."""
    logits, start = [], 0
    for size in pieces:
        rows = np.arange(size, dtype=np.int32)
        ids = np.array(IDS[start : start + size], np.int32)
        ends, pages = np.array([0, size], np.int32), np.array([[2]], np.int32)
        logits.append(runner.forward(Batch(ids, rows + start, ends, pages, rows)).numpy().copy())
        start += size
    return np.concatenate(logits)


def oracle(folder: Path, runner: ModelRunner, name: str) -> npt.NDArray[np.float32]:
    table: Any = runner.model.model.rotary_emb.rope_tables[None]
    [weights] = resolve_model(str(folder), quantize=name).weights
    return NumpyLlama(folder, table.cos.numpy(), table.sin.numpy(), weights).logits(IDS)


@pytest.mark.parametrize("name", QUANTIZE)
@pytest.mark.parametrize("plan", ["modules", "fused"])
def test_logits_are_the_contracts(tmp_path: Path, cache: Path, name: str, plan: str) -> None:
    folder = write(tmp_path / "m")
    runner = load(folder, quantize=name, plan=plan)
    assert runner.plan == plan
    expected = oracle(folder, runner, name)
    assert np.isfinite(expected).all()
    for pieces in ([19], [7, 1, 11]):
        assert_same_bits(feed(runner, pieces), expected, str(pieces))


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_tied_heads_and_other_architectures(tmp_path: Path, cache: Path, architecture: str) -> None:
    folder = write(tmp_path / "m", architecture, tied=True)
    runner = load(folder, quantize="q4_0")
    head, table = runner.model.lm_head.leaf, runner.model.model.embed_tokens.leaf
    assert head is table
    assert head.packed.storage == "Q8_0"
    assert_same_bits(feed(runner, [8, 11]), oracle(folder, runner, "q4_0"))


def test_experts_are_multiplied_from_their_blocks(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "m", "qwen3_moe", moe_intermediate_size=96)
    runner = load(folder, quantize="q4_k")
    experts = runner.model.model.layers[1].mlp.experts.expert_leaves
    assert {leaf.packed.storage for leaf in experts["gate_up_proj"]} == {"Q4_K"}
    assert {leaf.packed.storage for leaf in experts["down_proj"]} == {"Q4_1"}
    assert_same_bits(feed(runner, [8, 11]), oracle(folder, runner, "q4_k"))


def test_a_cache_warm_or_fresh_gives_equal_fingerprints_and_bits(
    tmp_path: Path, cache: Path
) -> None:
    folder = write(tmp_path / "m")
    cold = load(folder, quantize="q4_k")
    warm = load(folder, quantize="q4_k", threads=2)
    shutil.rmtree(cache / "models")
    again = load(folder, quantize="q4_k")
    for runner in (warm, again):
        assert runner.fingerprint == cold.fingerprint
        assert_same_bits(feed(runner, [19]), feed(cold, [19]))
    assert cold.fingerprint.parts["weight_format"] == (
        "packed Q4_1+Q4_K+Q8_0 by quantiser 1, float32"
    )
    # The negative control: another format, or none, is another model.
    for other in (load(folder, quantize="q4_1"), load(folder)):
        assert other.fingerprint.system_fingerprint != cold.fingerprint.system_fingerprint
        assert not same_bits(feed(other, [19]), feed(cold, [19]))


def test_blocks_of_eight_bits_stand_for_the_checkpoints_numbers(
    tmp_path: Path, cache: Path
) -> None:
    folder = write(tmp_path / "m", initializer_range=0.03)
    near, exact = (feed(load(folder, quantize=name), [19]) for name in ("q8_0", None))
    assert np.corrcoef(near.ravel(), exact.ravel())[0, 1] > 0.999
