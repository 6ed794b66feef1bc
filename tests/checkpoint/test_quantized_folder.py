"""A checkpoint's weights in blocks: what is put into them, once, and what is refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import edit_tensors, write_folder
from gguf_samples import write_gguf
from interrupted import killed_midway, without_disk_space
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from detinfer.checkpoint import quantized_folder
from detinfer.checkpoint.loader import check_model, resolve_model
from detinfer.checkpoint.model_files import ModelFiles, weights_digest
from detinfer.checkpoint.quantiser import quantise
from detinfer.checkpoint.store import find_damage
from detinfer.checkpoint.weight_file import read_header
from detinfer.config import QUANTIZE, EngineConfig
from detinfer.errors import ConfigError, ModelLoadError

# Rows of 256 for most, of 96 for down_proj: no whole blocks of Q4_K.
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
UP, DOWN = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "down"))


def stored(files: ModelFiles) -> dict[str, str]:
    return {name: info.dtype for name, info in read_header(files.weights[0]).items()}


@pytest.mark.parametrize("name", QUANTIZE)
@pytest.mark.parametrize("tied", [False, True])
def test_linear_layers_are_in_blocks_and_the_rest_is_the_checkpoints(
    tmp_path: Path, cache: Path, name: str, tied: bool
) -> None:
    folder = write_folder(tmp_path / "m", **WIDE, tie_word_embeddings=tied)
    files = resolve_model(str(folder), quantize=name)
    assert (files.folder, files.name) == (folder, "m")
    source, found = load_file(folder / "model.safetensors"), load_file(files.weights[0])
    kinds = stored(files)
    assert kinds.keys() == source.keys() == found.keys()
    for tensor, values in source.items():
        kind = name.upper()
        if values.ndim == 1:
            assert kinds[tensor] == "F32"
            assert torch.equal(found[tensor], values)
            continue
        if tensor == ("model.embed_tokens.weight" if tied else "lm_head.weight"):
            kind = "Q8_0"
        elif name == "q4_k" and ".down_proj." in tensor:
            kind = "Q4_1"
        assert kinds[tensor] == kind
        assert np.array_equal(found[tensor].numpy(), quantise(values.numpy(), kind))
    packed = "+".join(sorted({kinds[UP], kinds[DOWN], "Q8_0"}))
    assert files.weight_format == f"packed {packed} by quantiser 1, float32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_widened_first(
    tmp_path: Path, cache: Path, dtype: torch.dtype
) -> None:
    folder = write_folder(tmp_path / "m", **WIDE)
    edit_tensors(folder, lambda tensors: {n: t.to(dtype) for n, t in tensors.items()})
    source = load_file(folder / "model.safetensors")
    found = load_file(resolve_model(str(folder), quantize="q4_1").weights[0])
    assert np.array_equal(found[UP].numpy(), quantise(source[UP].float().numpy(), "Q4_1"))
    assert torch.equal(found["model.norm.weight"], source["model.norm.weight"])


def test_what_is_no_whole_block_stays_and_is_named(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(write_folder(tmp_path / "m", **WIDE | {"intermediate_size": 100}))
    with caplog.at_level(logging.WARNING):
        first = resolve_model(folder, quantize="q4_k")
        again = resolve_model(folder, quantize="q4_k")  # said at every load
    assert stored(first)[DOWN] == "F32"
    assert first == again
    line = "quantize q4_k: model.layers.0.mlp.down_proj.weight and 1 more, not in a linear layer"
    assert [message.startswith(line) for message in caplog.messages] == [True, True]


def test_rows_of_no_blocks_of_256_are_named(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_model(str(write_folder(tmp_path / "m", **WIDE)), quantize="q4_k")
    line = "down_proj.weight and 1 more, of rows that are no whole blocks of 256: Q4_1"
    assert [message.endswith(line) for message in caplog.messages] == [True]


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_experts_are_stacked_and_routers_keep_their_precision(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, architecture: str
) -> None:
    size = {"intermediate_size": 96, "moe_intermediate_size": 96, **SMALL}
    if architecture == "qwen2_moe":
        size["shared_expert_intermediate_size"] = 64
    folder = write_folder(tmp_path / "m", architecture, **size)
    files = resolve_model(str(folder), quantize="q4_0")
    kinds, found = stored(files), load_file(files.weights[0])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    experts = 0
    for name, values in model.state_dict().items():
        if values.ndim == 3:  # [experts, rows, columns]
            rows = values.reshape(-1, values.shape[2]).numpy()
            blocks = quantise(rows, "Q4_0").reshape(*values.shape[:2], -1)
            assert np.array_equal(found[name].numpy(), blocks)
            experts += 1
    assert experts == 4
    assert not [name for name in kinds if ".experts.0." in name]
    routers = [name for name in kinds if name.endswith("gate.weight")]
    assert len(routers) == (4 if architecture == "qwen2_moe" else 2)
    assert {kinds[name] for name in routers} == {"F32"}
    assert not caplog.messages


def test_experts_that_are_no_whole_blocks_stay(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = SMALL | {"moe_intermediate_size": 36}
    kinds = stored(
        resolve_model(str(write_folder(tmp_path / "m", "qwen3_moe", **size)), quantize="q8_0")
    )
    assert kinds["model.layers.0.mlp.experts.gate_up_proj"] == "Q8_0"
    assert kinds["model.layers.0.mlp.experts.0.down_proj.weight"] == "F32"
    assert "experts.0.down_proj.weight and 9 more, not in a linear" in caplog.text


def test_a_cache_warm_or_fresh_gives_the_same_bytes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(write_folder(tmp_path / "m", **WIDE))
    first = resolve_model(folder, quantize="q4_k")
    with monkeypatch.context() as patch:
        patch.setattr(quantized_folder, "_write", lambda *_: pytest.fail("made again"))
        assert resolve_model(folder, quantize="q4_k") == first
    before = weights_digest(first)
    shutil.rmtree(cache)
    assert weights_digest(resolve_model(folder, quantize="q4_k")) == before
    assert weights_digest(resolve_model(folder, quantize="q4_1")) != before


def test_folders_are_named_by_contents(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "m", **WIDE)
    first = resolve_model(str(folder), quantize="q8_0")
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert resolve_model(str(moved), quantize="q8_0").weights == first.weights

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][0, 0] += 1

    edit_tensors(folder, change)
    second = resolve_model(str(folder), quantize="q8_0")
    assert second.weights != first.weights
    assert not torch.equal(load_file(second.weights[0])[UP], load_file(first.weights[0])[UP])


def test_a_damaged_copy_is_made_again(tmp_path: Path, cache: Path) -> None:
    folder = str(write_folder(tmp_path / "m", **WIDE))
    [path] = resolve_model(folder, quantize="q4_0").weights
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    assert resolve_model(folder, quantize="q4_0").weights == (path,)
    assert path.read_bytes() == before


def test_killed_midway_it_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, cache: Path
) -> None:
    folder = write_folder(tmp_path / "m", **WIDE)
    at = killed_midway("detinfer.checkpoint.quantized_folder", folder, "q8_0")
    assert at == "quantising weights\n"
    assert list((cache / "models").glob(".*.partial-*/model.safetensors"))
    assert not list((cache / "models").glob("quantized-*"))
    made = resolve_model(str(folder), quantize="q8_0").weights[0].parent
    assert find_damage(made) is None
    assert not list((cache / "models").glob(".*.partial-*"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    without_disk_space(write_folder(tmp_path / "m", **WIDE), "q8_0")
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_a_checkpoint_that_changes_meanwhile_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "m", **WIDE)
    write = quantized_folder._write

    def change(*given: Any) -> None:
        write(*given)
        edit_tensors(folder, lambda tensors: {n: t * 2 for n, t in tensors.items()})

    monkeypatch.setattr(quantized_folder, "_write", change)
    with pytest.raises(ModelLoadError, match=r"model.safetensors: changed while the model was"):
        resolve_model(str(folder), quantize="q8_0")
    assert not list((cache / "models").glob("quantized-*"))


@pytest.mark.parametrize(("value", "found"), [(1e8, "values too large"), (np.nan, "holds NaN")])
def test_a_weight_that_no_block_can_hold_is_named(
    tmp_path: Path, cache: Path, value: float, found: str
) -> None:
    folder = write_folder(tmp_path / "m", **WIDE)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][3, 7] = value

    edit_tensors(folder, spoil)
    with pytest.raises(ModelLoadError, match=f"tensor {UP} {'has' if value > 0 else ''}.*{found}"):
        resolve_model(str(folder), quantize="q4_1")
    assert not list((cache / "models").glob("quantized-*"))


def test_a_model_without_whole_blocks_is_refused(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "m", hidden_size=48, intermediate_size=100, head_dim=10)
    with pytest.raises(ConfigError, match=r"quantize: got 'q8_0', but no tensor of .* is the"):
        resolve_model(str(folder), quantize="q8_0")


@pytest.mark.parametrize("what", ["default", "file"])
def test_what_is_quantised_already_is_refused(tmp_path: Path, cache: Path, what: str) -> None:
    path = None if what == "default" else str(write_gguf(tmp_path / "m.gguf"))
    words = f"quantize: got 'q4_0', but {path or 'the default model'} is a GGUF file"
    for refused in (check_model, resolve_model):
        with pytest.raises(ConfigError, match=words) as caught:
            refused(path, quantize="q4_0")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quantize": "q3"}, "quantize: got 'q3', expected one of q8_0, q4_0, q4_1, q4_k"),
        ({"quantize": True}, "quantize: got True, expected one of"),
        (
            {"quantize": "q8_0", "weights": "dequantized"},
            "quantize: got 'q8_0' with weights 'dequantized', expected auto or packed",
        ),
        ({"quantize": "q8_0", "device": "cuda"}, "quantize: got 'q8_0' with profile native"),
        ({"quantize": "q8_0", "numerics": "native"}, "expected None"),
    ],
)
def test_settings_that_cannot_work_cost_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        EngineConfig(**settings)
    assert "\n" not in str(caught.value)
