"""Experts that run from their file's own blocks: rule 1q bit for bit, however tokens are fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_experts import (
    ARCHITECTURES,
    EXPERTS,
    INNER,
    experts_metadata,
    experts_tensors,
    write_experts,
)
from gguf_samples import quantize
from numpy_llama import NumpyLlama
from safetensors.numpy import load_file
from test_packed_model import IDS, feed, load

from detinfer.checkpoint.loader import resolve_model
from detinfer.errors import DetinferError, ModelLoadError, UnsupportedModelError
from detinfer.models import moe
from detinfer.runner.loading import load_model, read_packed
from detinfer.testing import assert_same_bits, same_bits

# What people download: a finer format for some of the tensors that bring experts' sums back.
Q4_K_M = {"blk.0.ffn_down_exps.weight": Kind.Q6_K, "output.weight": Kind.Q6_K}
GATE_UP, DOWN = (f"model.layers.0.mlp.experts.{n}" for n in ("gate_up_proj", "down_proj"))


def oracle(path: str, runner: Any, weights: str = "packed") -> Any:
    table = runner.model.model.rotary_emb.rope_tables[None]
    folder = resolve_model(path, weights=weights).folder
    return NumpyLlama(folder, table.cos.numpy(), table.sin.numpy()).logits(IDS)


def storages(runner: Any) -> list[set[str]]:
    """Of gate and up together, and of down: how the first layer's experts are stored."""
    leaves = runner.model.model.layers[0].mlp.experts.expert_leaves
    return [{leaf.packed.storage for leaf in leaves[n]} for n in ("gate_up_proj", "down_proj")]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_are_the_contracts(tmp_path: Path, cache: Path, arch: str) -> None:
    path = str(write_experts(tmp_path / "m.gguf", arch, Kind.Q4_K, Q4_K_M))
    runner = load(path)
    assert (runner.plan, storages(runner)) == ("modules", [{"Q4_K"}, {"Q6_K"}])
    expected = oracle(path, runner)
    assert np.isfinite(expected).all()
    for pieces in ([len(IDS)], [1] * len(IDS), [7, 1, 11]):
        assert_same_bits(feed(runner, pieces), expected, str(pieces))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q5_K"])
def test_other_formats_are_multiplied_in_their_blocks(
    tmp_path: Path, cache: Path, name: str
) -> None:
    path = str(write_experts(tmp_path / "m.gguf", "qwen3moe", Kind[name]))
    runner = load(path, threads=2)
    assert storages(runner) == [{name}, {name}]
    assert_same_bits(feed(runner, [8, 11]), oracle(path, runner))


def test_widened_experts_give_other_bits(tmp_path: Path, cache: Path) -> None:
    """The negative control: the comparison above tells rule 1q from rule 1."""
    path = str(write_experts(tmp_path / "m.gguf", "qwen3moe", Kind.Q8_0))
    packed, widened = load(path), load(path, weights="dequantized")
    got = feed(widened, [len(IDS)])
    assert storages(widened) == [{"bfloat16"}, {"bfloat16"}]
    assert_same_bits(got, oracle(path, widened, "dequantized"))
    assert not same_bits(got, feed(packed, [len(IDS)]))


def test_the_order_of_a_tokens_experts_is_told(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the sums: experts descending, of which a token has three."""
    runner = load(str(write_experts(tmp_path / "m.gguf", "llama", Kind.Q8_0)))
    expected = feed(runner, [len(IDS)])
    monkeypatch.setattr(moe, "sorted", lambda ids: sorted(ids, reverse=True), raising=False)
    assert not same_bits(feed(runner, [len(IDS)]), expected)


def test_blocks_of_experts_are_the_files_own(tmp_path: Path, cache: Path) -> None:
    path = write_experts(tmp_path / "m.gguf", "llama", Kind.Q4_K, Q4_K_M)
    files = resolve_model(str(path), weights="packed")
    assert files.weight_format == "packed Q4_K+Q6_K, float32 from gguf F32"
    found, tensors = load_file(files.weights[0]), experts_tensors("llama")
    parts = [quantize(tensors[f"blk.0.ffn_{n}_exps.weight"], Kind.Q4_K) for n in ("gate", "up")]
    assert np.array_equal(found[GATE_UP], np.concatenate(parts, axis=1))
    down = quantize(tensors["blk.0.ffn_down_exps.weight"], Kind.Q6_K)
    assert np.array_equal(found[DOWN], down)
    model = load_model(files)
    for name in (GATE_UP, DOWN):  # what stands for them in transformers' model is no memory
        assert model.get_parameter(name).untyped_storage().nbytes() == 4
    assert len(read_packed(files)[DOWN]) == EXPERTS


@pytest.mark.parametrize(
    ("up", "expected"),
    [(Kind.Q8_0, "bfloat16"), (Kind.Q2_K, "bfloat16"), (Kind.F32, "float32")],
)
def test_gate_and_up_of_two_formats_are_widened(
    tmp_path: Path, cache: Path, up: Kind, expected: str
) -> None:
    """They are one weight in the model. Nothing else of the file is widened for it."""
    kinds = {"blk.0.ffn_up_exps.weight": up}
    path = str(write_experts(tmp_path / "m.gguf", "qwen2moe", Kind.Q4_K, kinds))
    runner = load(path)
    assert storages(runner) == [{expected}, {"Q4_K"}]
    assert_same_bits(feed(runner, [8, 11]), oracle(path, runner))
    gate = quantize(experts_tensors("qwen2moe")["blk.0.ffn_gate_exps.weight"], Kind.Q4_K)
    values = torch.from_numpy(gguf.dequantize(gate, Kind.Q4_K))
    leaf = runner.model.model.layers[0].mlp.experts.expert_leaves["gate_up_proj"][3]
    whole = leaf.packed.unpack(torch.float32)[:INNER]
    rounded = values[3] if expected == "float32" else values[3].to(torch.bfloat16).float()
    assert_same_bits(whole, rounded)


def test_a_router_in_blocks_is_widened(tmp_path: Path, cache: Path) -> None:
    kinds = {f"blk.{i}.ffn_gate_inp.weight": Kind.Q8_0 for i in range(2)}
    path = str(write_experts(tmp_path / "m.gguf", "qwen3moe", Kind.Q4_K, kinds))
    runner = load(path)
    assert runner.model.model.layers[0].mlp.gate.leaf.packed.storage == "bfloat16"
    assert_same_bits(feed(runner, [8, 11]), oracle(path, runner))


def refuse(path: Path, cache: Path, kind: type[DetinferError], words: str) -> None:
    with pytest.raises(DetinferError, match=words) as caught:
        resolve_model(str(path), weights="packed")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert not [file for file in (cache / "models").iterdir() if file.suffix != ".lock"]


@pytest.mark.parametrize(
    ("arch", "change", "words"),
    [
        ("llama", {"llama.expert_used_count": None}, "llama.expert_used_count is missing"),
        ("llama", {"llama.expert_used_count": 6}, "expert_used_count: got 6, expected 1 to the 5"),
        ("llama", {"llama.expert_count": 4}, r"mlp.gate.weight has shape \[5, 256\], its metadata"),
        ("llama", {"llama.expert_count": 0}, "layers.0.mlp.gate_proj.weight is missing"),
        ("qwen3moe", {"qwen3moe.expert_count": 0}, "expert_count: got 0, expected 1"),
        (
            "qwen3moe",
            {"qwen3moe.expert_feed_forward_length": 512},
            r"gate_up_proj has shape \[5, 512, 256\], its metadata says \[5, 1024, 256\]",
        ),
        (
            "qwen2moe",
            {"qwen2moe.expert_shared_feed_forward_length": None},
            "expert_shared_feed_forward_length is missing",
        ),
    ],
)
def test_metadata_of_experts_that_does_not_fit_is_named(
    tmp_path: Path, cache: Path, arch: str, change: dict[str, Any], words: str
) -> None:
    pairs = {k: v for k, v in (experts_metadata(arch) | change).items() if v is not None}
    path = write_experts(tmp_path / "m.gguf", arch, Kind.Q4_K, pairs=pairs)
    refuse(path, cache, ModelLoadError, words)


def test_a_way_to_weigh_experts_that_is_not_built_is_named(tmp_path: Path, cache: Path) -> None:
    pairs = experts_metadata("qwen3moe") | {"qwen3moe.expert_weights_scale": 2.5}
    path = write_experts(tmp_path / "m.gguf", "qwen3moe", Kind.Q4_K, pairs=pairs)
    words = "expert_weights_scale = 2.5 is not supported"
    refuse(path, cache, UnsupportedModelError, words)


def test_tensors_of_experts_that_do_not_fit_are_named(tmp_path: Path, cache: Path) -> None:
    whole, up = experts_tensors("qwen3moe"), "blk.0.ffn_up_exps.weight"
    for values, words in (
        (None, r"experts.gate_up_proj has shape \[5, 256, 256\], its metadata says \[5, 512, 256"),
        (whole[up][:4], rf"tensor {up} has shape \[4, 256, 256\], blk.0.ffn_gate_exps.weight \[5"),
        (whole[up][0], rf"tensor {up} has shape \[256, 256\], blk.0.ffn_gate_exps.weight \[5"),
    ):
        tensors = {k: v for k, v in {**whole, up: values}.items() if v is not None}
        path = write_experts(tmp_path / "m.gguf", "qwen3moe", Kind.Q4_K, tensors=tensors)
        refuse(path, cache, ModelLoadError, words)
        path.unlink()
