"""Quantised blocks that stay packed: the converted folder has the file's own, and says so."""

import gguf
import numpy as np
import pytest
import torch
from folders import write_folder
from gguf import GGMLQuantizationType as Kind
from gguf_samples import (
    HEADS,
    KV_HEADS,
    gguf_name,
    gguf_tensors,
    metadata,
    permute,
    quantize,
    tiny_model,
    write_gguf,
)
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from detinfer.checkpoint import loader
from detinfer.checkpoint.gguf.convert import round_to_bfloat16
from detinfer.checkpoint.loader import check_model, resolve_model
from detinfer.checkpoint.model_files import weights_digest
from detinfer.checkpoint.weight_file import read_header
from detinfer.config import EngineConfig
from detinfer.errors import ConfigError, ModelLoadError, UnsupportedModelError
from detinfer.kernels.constants import BLOCK_FORMATS
from detinfer.models.leaves import is_placeholder
from detinfer.models.patches import patch_model
from detinfer.runner import loading
from detinfer.runner.loading import load_model, read_packed, read_source

KINDS = [Kind[name] for name in BLOCK_FORMATS]


def tiny_tensors(arch="llama"):
    return gguf_tensors(tiny_model(arch, wide=True))


def write(path, kind, arch="llama", **options):
    pairs = metadata(arch, wide=True)
    return write_gguf(path, arch, tensors=tiny_tensors(arch), pairs=pairs, kind=kind, **options)


def dequantized(blocks, kind):
    return torch.from_numpy(gguf.dequantize(blocks, kind)).to(torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_blocks_are_the_files_own(tmp_path, cache, arch, kind):
    path = write(tmp_path / "m.gguf", kind, arch)
    packed, widened = (resolve_model(str(path), weights=w) for w in ("packed", "dequantized"))
    found, expected = load_file(packed.weights[0]), load_torch(widened.weights[0])
    header = read_header(packed.weights[0])
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert header[name].shape == tuple(values.shape)
        if values.ndim == 1:
            assert header[name].dtype in ("BF16", "F32")
            continue
        assert header[name].dtype == kind.name
        again = dequantized(found[name], kind)
        assert torch.equal(again.view(torch.int16), values.view(torch.int16)), name
    # Not only in what they stand for: byte for byte, and q and k of llama row by row.
    tensors = tiny_tensors(arch)
    for name in ("model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"):
        assert np.array_equal(found[name], quantize(tensors[gguf_name(name)], kind))
    for name, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
        rows = found[f"model.layers.0.self_attn.{name}.weight"]
        stored = quantize(tensors[f"blk.0.attn_{name[0]}.weight"], kind)
        assert np.array_equal(permute(rows, heads) if arch == "llama" else rows, stored)
        assert np.array_equal(rows, stored) == (arch != "llama")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({}, "packed Q4_K, float32 from gguf F32"),
        ({"blk.0.ffn_down.weight": Kind.Q6_K}, "packed Q4_K+Q6_K, float32 from gguf F32"),
        ({"output.weight": Kind.F16}, "packed Q4_K, float16+float32 from gguf F16"),
        ({"blk.1.attn_v.weight": Kind.Q2_K}, "packed Q4_K, bfloat16+float32 from gguf Q2_K"),
    ],
)
def test_the_weight_format_names_what_is_packed_and_what_is_not(tmp_path, cache, kinds, expected):
    path = write(tmp_path / "m.gguf", Kind.Q4_K, kinds=kinds)
    files = resolve_model(str(path), weights="packed")
    assert files.weight_format == expected
    widened = {name for name, kind in kinds.items() if kind.name not in BLOCK_FORMATS}
    matrices = {name for name, values in tiny_tensors().items() if values.ndim == 2}
    assert {gguf_name(name) for name in read_packed(files)} == matrices - widened


def test_packed_and_dequantized_are_two_models_in_the_cache(tmp_path, cache):
    path = write(tmp_path / "m.gguf", Kind.Q4_1)
    packed, widened, auto = (
        resolve_model(str(path), weights=weights) for weights in ("packed", "dequantized", "auto")
    )
    assert packed.folder != widened.folder
    assert weights_digest(packed) != weights_digest(widened)
    assert auto == packed


def test_a_file_without_blocks_is_the_same_model_either_way(tmp_path, cache):
    """Auto packs, and gives no other fingerprint where there is nothing to pack."""
    path = write(tmp_path / "m.gguf", Kind.F16)
    widened = resolve_model(str(path), weights="dequantized")
    auto = resolve_model(str(path))
    assert weights_digest(auto) == weights_digest(widened)
    assert auto.weight_format == widened.weight_format
    with pytest.raises(ConfigError, match="has no quantised blocks that could stay packed"):
        resolve_model(str(path), weights="packed")


def test_blocks_take_no_memory_in_transformers_model(tmp_path, cache):
    files = resolve_model(str(write(tmp_path / "m.gguf", Kind.Q4_1)), weights="packed")
    model, header = load_model(files), read_header(files.weights[0])
    for name, parameter in model.named_parameters():
        assert is_placeholder(parameter) == (header[name].dtype == "Q4_1"), name


def test_blocks_without_a_layer_that_multiplies_them_are_refused(tmp_path, cache):
    files = resolve_model(str(write(tmp_path / "m.gguf", Kind.Q8_0)), weights="packed")
    model, packed = load_model(files), read_packed(files)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = model.get_parameter(name)
    model.model.layers[0].mlp.up_proj = torch.nn.Identity()
    model.model.layers[0].mlp.up_proj.weight = weight
    with pytest.raises(UnsupportedModelError, match=f"{name}: its quantised blocks cannot stay"):
        patch_model(model, torch.float32, 64, False, packed)


def test_a_model_without_blocks_cannot_be_packed(tmp_path, cache, monkeypatch):
    folder = str(write_folder(tmp_path / "folder"))
    monkeypatch.setattr(loader, "fetch_from_hub", lambda *_: pytest.fail("fetched in vain"))
    for name in (folder, "org/model"):
        words = f"weights: got 'packed', but {name} has no quantised blocks"
        with pytest.raises(ConfigError, match=words):
            check_model(name, "packed")
        with pytest.raises(ConfigError, match=words):
            resolve_model(name, weights="packed")
    assert resolve_model(folder, weights="dequantized") == resolve_model(folder)


def test_a_folder_of_blocks_is_not_taken_for_a_users_own(tmp_path, cache):
    files = resolve_model(str(write(tmp_path / "m.gguf", Kind.Q4_1)), weights="packed")
    with pytest.raises(UnsupportedModelError, match="weights of dtype Q4_1; supported are"):
        resolve_model(str(files.folder))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": "packed", "device": "cuda"}, "weights: got 'packed' with profile native"),
        ({"weights": "packed", "numerics": "native"}, "expected dequantized"),
        ({"weights": "q4_0"}, "weights: got 'q4_0', expected one of auto, packed, dequantized"),
    ],
)
def test_settings_that_cannot_work_cost_one_line(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        EngineConfig(**settings).resolve()
    assert "\n" not in str(caught.value)


def test_auto_never_packs_for_a_gpu():
    assert EngineConfig(device="cuda").resolve().weights == "dequantized"
    assert EngineConfig().resolve().weights == "auto"


@pytest.mark.parametrize("weights", ["packed", "dequantized"])
def test_weights_larger_than_memory_are_refused_before_they_are_read(
    tmp_path, cache, monkeypatch, weights
):
    path = str(write(tmp_path / "tiny.gguf", Kind.Q8_0))
    size = sum(file.stat().st_size for file in resolve_model(path, weights=weights).weights)
    monkeypatch.setattr("detinfer.machine.available_memory", lambda: size - 1)
    with pytest.raises(ModelLoadError, match=r"model tiny: its weights take \d MiB, but \d MiB"):
        read_source(path, weights)
    monkeypatch.setattr("detinfer.machine.available_memory", lambda: size)
    monkeypatch.setattr(loading, "load_tokenizer", lambda files: "read on")
    monkeypatch.setattr(loading, "file_parts", lambda *_: {})
    assert read_source(path, weights).tokenizer == "read on"


def test_rounding_of_what_is_not_packed_is_as_ever(tmp_path, cache):
    path = write(tmp_path / "m.gguf", Kind.Q4_K, kinds={"output.weight": Kind.Q2_K})
    found = load_torch(resolve_model(str(path), weights="packed").weights[0])["lm_head.weight"]
    blocks = quantize(tiny_tensors()["output.weight"], Kind.Q2_K)
    expected = round_to_bfloat16(gguf.dequantize(blocks, Kind.Q2_K))
    assert np.array_equal(found.view(torch.int16).numpy().view(np.uint16), expected)
