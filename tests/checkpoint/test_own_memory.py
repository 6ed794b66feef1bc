"""A loaded model is its own: no file is read after load, and none may change while it is read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from folders import WEIGHTS, load, write_folder
from gguf_samples import gguf_tensors, tiny_model, write_gguf
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, make_batch, tokens

from detinfer.checkpoint import loader
from detinfer.checkpoint.loader import resolve_model
from detinfer.errors import ModelLoadError
from detinfer.runner import fingerprint
from detinfer.runner.loading import load_model


def mappings(path: Path) -> list[tuple[int, int]]:
    """Where a file is mapped into this process."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = (line[0].split("-") for line in lines if line[5:] == [str(path)])
    return [(int(start, 16), int(end, 16)) for start, end in spans]


def borrowed(tensors: dict[str, torch.Tensor], path: Path) -> list[str]:
    """Names of the tensors whose memory is the file's."""
    spans = mappings(path)
    return [
        name
        for name, tensor in tensors.items()
        if any(start <= tensor.untyped_storage().data_ptr() < end for start, end in spans)
    ]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_no_parameter_is_a_view_of_the_file(tmp_path: Path, architecture: str) -> None:
    model = load_model(resolve_model(str(write_folder(tmp_path, architecture))))
    assert borrowed(dict(model.state_dict()), tmp_path / WEIGHTS) == []


def test_a_view_of_the_file_would_be_seen(tmp_path: Path) -> None:
    write_folder(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert len(borrowed(tensors, tmp_path / WEIGHTS)) == len(tensors)


def logits(runner: Any) -> npt.NDArray[np.int32]:
    batch = make_batch([(tokens(9, seed=1), 0, [0]), (tokens(70, seed=2), 0, [1, 2])])
    return np.array(runner.forward(batch).numpy().view(np.int32))


@pytest.mark.parametrize("plan", ["modules", "fused"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_a_file_written_over_changes_no_bit(tmp_path: Path, architecture: str, plan: str) -> None:
    runner = load(write_folder(tmp_path, architecture), plan=plan)
    before = logits(runner)
    assert borrowed(dict(runner.model.state_dict()), tmp_path / WEIGHTS) == []
    with open(tmp_path / WEIGHTS, "r+b") as file:  # the same inode, as `cp new old` leaves it
        file.write(os.urandom((tmp_path / WEIGHTS).stat().st_size))
    assert np.array_equal(logits(runner), before)


def write_over(path: Path) -> None:
    """Its last byte, in place; size and mtime stay."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    """By an equal file, as `mv new old` does."""
    copy = path.with_name(".copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def add(path: Path) -> None:
    path.write_text("{{ messages }}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny") / "tiny")


def change_meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Changes something when the weights have been read and are not yet hashed."""
    digest = fingerprint.weights_digest

    def late(files: Any) -> str:
        change()
        return digest(files)

    monkeypatch.setattr(fingerprint, "weights_digest", late)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (write_over, WEIGHTS),
        (replace, WEIGHTS),
        (replace, "config.json"),
        (replace, "generation_config.json"),
        (replace, "tokenizer.json"),
        (replace, "tokenizer_config.json"),
        (Path.unlink, "generation_config.json"),
        (add, "chat_template.jinja"),
        (add, "vocab.txt"),
        (add, "additional_chat_templates/tools.jinja"),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_named(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    name: str,
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "additional_chat_templates").mkdir()
    change_meanwhile(monkeypatch, lambda: change(copy / name))
    with pytest.raises(ModelLoadError, match=f"{re.escape(name)}: changed while the") as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_a_file_that_loading_does_not_read_may_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    change_meanwhile(monkeypatch, lambda: add(copy / "train.log"))
    load(copy)


def test_a_gguf_file_replaced_while_it_is_converted_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    other = write_gguf(tmp_path / "other.gguf", tensors=gguf_tensors(tiny_model(seed=1)))
    convert = loader.convert_gguf

    def late(path: Path, *rest: Any) -> None:
        other.replace(path)
        convert(path, *rest)

    monkeypatch.setattr(loader, "convert_gguf", late)
    with pytest.raises(ModelLoadError, match=r"m\.gguf: changed while the model was loaded"):
        resolve_model(str(path))
    assert not list((cache / "models").glob("gguf-*"))
