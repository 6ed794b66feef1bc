"""GGUF conversion: the model that comes out is the model that went in."""

import json

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_samples import gguf_tensors, metadata, tiny_model, write_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from detinfer.checkpoint import loader
from detinfer.checkpoint.gguf.convert import convert_gguf, round_to_bfloat16
from detinfer.checkpoint.loader import resolve_model

IDS = torch.tensor([[5, 17, 3, 99, 42, 7]])


def load(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        dtype=torch.float32,
    ).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_float32_file_gives_the_original_models_logits(tmp_path, arch, tied):
    model = tiny_model(arch, tied)
    path = write_gguf(tmp_path / "m.gguf", arch, tensors=gguf_tensors(model))
    out = tmp_path / "out"
    out.mkdir()
    convert_gguf(path, out)
    with torch.no_grad():
        assert torch.equal(load(out)(IDS).logits, model(IDS).logits)


def test_logits_move_when_the_llama_layout_is_not_restored(tmp_path, monkeypatch):
    model = tiny_model("llama")
    path = write_gguf(tmp_path / "m.gguf", tensors=gguf_tensors(model))
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(
        "detinfer.checkpoint.gguf.convert.restore_layout", lambda config, name, values: values
    )
    convert_gguf(path, out)
    with torch.no_grad():
        assert not torch.allclose(load(out)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.BF16])
def test_packed_weights_are_dequantised_and_rounded_once(tmp_path, kind):
    tensors = gguf_tensors(tiny_model("qwen3"))
    path = write_gguf(tmp_path / "m.gguf", "qwen3", tensors=tensors, kind=kind)
    out = tmp_path / "out"
    out.mkdir()
    convert_gguf(path, out)
    found = load_file(out / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    packed = gguf.quantize(tensors["blk.1.ffn_up.weight"], kind)
    expected = torch.from_numpy(gguf.dequantize(packed, kind)).to(torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize(
    ("kind", "norm", "expected", "dtype"),
    [
        (Kind.Q8_0, 1.5, "bfloat16 from gguf Q8_0", "bfloat16"),
        (Kind.Q8_0, 1.1, "bfloat16+float32 from gguf Q8_0", "bfloat16"),
        (Kind.F16, 1.5, "bfloat16+float16 from gguf F16", "float16"),
        (Kind.F32, 1.5, "bfloat16+float32 from gguf F32", "float32"),
    ],
)
def test_float32_narrows_only_where_that_loses_nothing(tmp_path, kind, norm, expected, dtype):
    tensors = gguf_tensors(tiny_model())
    for name, values in tensors.items():
        if values.ndim == 1:
            tensors[name] = np.full_like(values, norm)
    out = tmp_path / "out"
    out.mkdir()
    convert_gguf(write_gguf(tmp_path / "m.gguf", tensors=tensors, kind=kind), out)
    assert (out / "weight_format.txt").read_text() == f"{expected}\n"
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    stored = load_file(out / "model.safetensors")["model.norm.weight"]
    assert np.array_equal(stored.float().numpy(), tensors["output_norm.weight"])


def test_rounding_to_bfloat16_is_to_nearest_even_with_subnormals_kept():
    high = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (high[:, None] | low).reshape(-1).view(np.float32)
    values = values[np.isfinite(values)]
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(round_to_bfloat16(values), expected.view(np.uint16))
    assert round_to_bfloat16(np.array([2.0**-133], np.float32))[0] == 1  # bfloat16's smallest


def test_equal_files_give_equal_bytes(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", kind=Kind.Q8_0)
    outs = [tmp_path / name for name in ("a", "b")]
    for out in outs:
        out.mkdir()
        convert_gguf(path, out)
    names = sorted(file.name for file in outs[0].iterdir())
    assert "model.safetensors" in names
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name


def test_numbers_in_the_config_are_the_decimals_the_model_was_made_with(tmp_path):
    pairs = metadata() | {"llama.rope.freq_base": 500000.0, "tokenizer.ggml.eot_token_id": 0}
    out = tmp_path / "out"
    out.mkdir()
    convert_gguf(write_gguf(tmp_path / "m.gguf", pairs=pairs), out)
    config = json.loads((out / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 500000.0}
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_a_users_file_is_converted_once_wherever_it_lies(tmp_path, cache, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    first = resolve_model(str(path))
    assert first.name == "tiny"
    assert first.folder.parent == cache / "models"
    monkeypatch.setattr(loader, "convert_gguf", lambda *args: pytest.fail("converted again"))
    moved = path.rename(tmp_path / "other.gguf")
    assert resolve_model(str(moved)).folder == first.folder


def test_another_file_of_the_same_name_is_another_model(tmp_path, cache):
    path = tmp_path / "tiny.gguf"
    first = resolve_model(str(write_gguf(path)))
    second = resolve_model(str(write_gguf(path, tensors=gguf_tensors(tiny_model(seed=1)))))
    assert first.folder != second.folder
