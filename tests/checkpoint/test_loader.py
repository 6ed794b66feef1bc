"""Names, folders and hub ids: what is taken for a model, and what is said of the rest."""

import json
import os
import pickle
import re
import time
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from gguf_samples import tiny_model, write_gguf
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import save_file

from detinfer.checkpoint.loader import check_model, load_tokenizer, resolve_model
from detinfer.checkpoint.model_files import config_digest, weights_digest
from detinfer.errors import DetinferError, ModelLoadError, UnsupportedModelError


@pytest.fixture
def model(tmp_path, cache):
    """A folder as save_pretrained leaves it, in float32."""
    folder = tmp_path / "tiny"
    tiny_model().save_pretrained(folder)
    return folder


def edit(path, **changes):
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def refuse(name, kind, words):
    with pytest.raises(DetinferError, match=words) as caught:
        resolve_model(str(name))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_a_folder_is_taken_as_it_is(model):
    before = sorted(os.listdir(model))
    files = resolve_model(str(model))
    assert (files.folder, files.name, files.weight_format) == (model, "tiny", "float32")
    assert files.weights == (model / "model.safetensors",)
    weights_digest(files)
    assert sorted(os.listdir(model)) == before


def test_a_sharded_folder_is_its_shards(tmp_path, cache):
    folder = tmp_path / "sharded"
    tiny_model().to(torch.bfloat16).save_pretrained(folder, max_shard_size="40KB")
    files = resolve_model(str(folder))
    assert len(files.weights) > 1
    assert [path.name for path in files.weights] == sorted(
        path.name for path in folder.glob("*.safetensors")
    )
    assert files.weight_format == "bfloat16"


def test_a_lost_shard_is_named(tmp_path, cache):
    folder = tmp_path / "sharded"
    tiny_model().save_pretrained(folder, max_shard_size="80KB")
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    refuse(folder, ModelLoadError, f"{lost.name}: named by .* but missing")


def test_a_shard_without_its_tensor_is_named(tmp_path, cache):
    folder = tmp_path / "sharded"
    tiny_model().save_pretrained(folder, max_shard_size="80KB")
    shard = sorted(folder.glob("*.safetensors"))[0]
    save_file({"other": torch.ones(1)}, shard)
    refuse(folder, ModelLoadError, "puts .* here, but it is not")


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", 3])
def test_an_index_cannot_point_outside_its_folder(model, file):
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"x": file}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(model, ModelLoadError, "expected the name of a file beside it")


def test_truncated_weights_are_refused(model):
    path = model / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 100)
    refuse(model, ModelLoadError, f"header says {size} bytes, file has {size - 100}")


def test_pickled_weights_are_refused_unread(model, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refuse(model, ModelLoadError, "only pickled weights .pytorch_model.bin.")
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_is_refused(model):
    (model / "model.safetensors").unlink()
    refuse(model, ModelLoadError, "no model.safetensors and no model.safetensors.index.json")


def test_weights_of_a_dtype_not_built_are_refused(model):
    save_file({"x": torch.ones(4).to(torch.float8_e4m3fn)}, model / "model.safetensors")
    refuse(model, UnsupportedModelError, "dtype F8_E4M3")


def test_packed_weights_are_refused(model):
    edit(model / "config.json", quantization_config={"quant_method": "gptq"})
    refuse(model, UnsupportedModelError, "packed by gptq")


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00", '{"model_type": 3}'])
def test_a_damaged_config_is_refused(model, text):
    (model / "config.json").write_text(text)
    refuse(model, ModelLoadError, "config.json")


def test_code_beside_a_known_model_is_left_alone(model, tmp_path):
    edit(model / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    assert resolve_model(str(model)).name == "tiny"
    assert not (tmp_path / "ran").exists()


def test_a_model_that_needs_its_own_code_is_refused_by_its_type(model):
    auto_map = {"AutoModelForCausalLM": "evil.Model"}
    edit(model / "config.json", model_type="evilnet", auto_map=auto_map)
    refuse(model, UnsupportedModelError, "model_type 'evilnet' without running")


def test_a_folder_that_holds_a_gguf_says_how_to_name_it(tmp_path, cache):
    path = write_gguf(tmp_path / "m.gguf")
    refuse(tmp_path, ModelLoadError, f"to load a GGUF file name it: {path}")


@pytest.mark.parametrize(
    "name",
    [
        *("", "gpt2", "no such", "/no/such/folder", "./no/such", "a/b/c", "~/no-such", "x/y.gguf"),
        *("org/na me", "\x00", "org/", "x" * 5000, "org/../etc", "https://huggingface.co/org/name"),
    ],
)
def test_a_name_that_is_nothing_is_refused_without_asking_the_hub(cache, monkeypatch, name):
    def fail(*args, **kwargs):
        pytest.fail("asked the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refuse(name, ModelLoadError, "no such file or folder, and not a hub id")


def test_what_shows_in_a_moment_is_what_loading_says(model, tmp_path, cache):
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.gguf").write_bytes(b"<!DOCTYPE html>")
    for name in ("/no/such", str(tmp_path / "empty"), str(model / "config.json")):
        with pytest.raises(ModelLoadError) as early:
            check_model(name)
        refuse(name, ModelLoadError, re.escape(str(early.value)))
    with pytest.raises(ModelLoadError, match="not a GGUF file: it begins with b'<!DO'"):
        check_model(str(tmp_path / "page.gguf"))
    for name in (None, "org/name", str(model)):
        check_model(name)
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"has no model\.safetensors"):
        check_model(str(model))


def test_a_file_of_another_kind_is_refused(model):
    refuse(model / "model.safetensors", ModelLoadError, "expected a folder or a .gguf file")


def test_a_hub_model_is_fetched_without_code_or_pickles(model, monkeypatch):
    def snapshot_download(name, allow_patterns):
        assert name == "org/name"
        for unwanted in ("modeling.py", "pytorch_model.bin", "consolidated.safetensors", "x.pt"):
            assert not any(Path(unwanted).match(pattern) for pattern in allow_patterns)
        for wanted in ("model-00001-of-00002.safetensors", "config.json", "tokenizer.json"):
            assert any(Path(wanted).match(pattern) for pattern in allow_patterns)
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    files = resolve_model("org/name")
    assert (files.name, files.folder) == ("org/name", model)


def test_a_hub_out_of_reach_is_one_line_and_quick(cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    refuse("org/name", ModelLoadError, "'org/name': .*hub cannot be reached")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RepositoryNotFoundError, "no such model on the Hugging Face hub"),
        (GatedRepoError, "ask for consent"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(cache, monkeypatch, error, words):
    def fail(*args, **kwargs):
        request = httpx.Request("GET", "https://example.test")
        raise error("401\nmore", response=httpx.Response(401, request=request))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refuse("org/name", ModelLoadError, words)


def test_a_folder_without_a_tokenizer_is_one_line(model):
    with pytest.raises(ModelLoadError, match="tokenizer") as caught:
        load_tokenizer(resolve_model(str(model)))
    assert "\n" not in str(caught.value)


def test_the_weights_digest_follows_the_contents(model, tmp_path):
    first = weights_digest(resolve_model(str(model)))
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert weights_digest(resolve_model(str(copy))) == first
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert weights_digest(resolve_model(str(copy))) != first


def test_the_config_digest_follows_what_matters(tmp_path, cache):
    files = resolve_model(str(write_gguf(tmp_path / "m.gguf")))
    config = config_digest(files)
    edit(files.folder / "config.json", use_cache=False, transformers_version="9", dtype="float16")
    assert config_digest(files) == config
    edit(files.folder / "config.json", rms_norm_eps=1e-6)
    assert config_digest(files) != config


def test_stopping_at_another_token_is_another_config(tmp_path, cache):
    files = resolve_model(str(write_gguf(tmp_path / "m.gguf")))
    before = config_digest(files)
    edit(files.folder / "generation_config.json", eos_token_id=[0, 2])
    assert config_digest(files) != before
