"""Safetensors headers are checked cheaply; what is written is what the library reads."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from detinfer.checkpoint.weight_file import TensorInfo, read_header, write_weights
from detinfer.errors import ModelLoadError


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    values = {
        "b": np.arange(12, dtype=np.float32).reshape(3, 4),
        "a": np.array([0x3F80, 0x0001], np.uint16),
        "c": np.ones((2, 1, 3), np.float16)[::-1],
    }
    dtypes = {"b": "F32", "a": "BF16", "c": "F16"}
    infos = {name: TensorInfo(dtypes[name], value.shape) for name, value in values.items()}
    path = tmp_path / "w.safetensors"
    write_weights(path, infos, iter(values.values()))
    found = load_file(path)
    assert torch.equal(found["b"], torch.from_numpy(values["b"]))
    assert found["a"].tolist() == [1.0, 2.0**-133]
    assert found["c"].dtype == torch.float16
    assert read_header(path) == infos


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.ones(10, 10), "y": torch.ones(3, dtype=torch.bfloat16)}, path)
    return path


def test_a_truncated_file_is_told_by_its_size(weights):
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-7])
    words = f"is truncated: header says {size} bytes, file has {size - 7}"
    with pytest.raises(ModelLoadError, match=words) as caught:
        read_header(weights)
    assert str(weights) in str(caught.value)


def test_a_file_cut_in_its_header_is_truncated(weights):
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(ModelLoadError, match="is truncated: its header takes"):
        read_header(weights)


def with_header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a safetensors file"),
        (b"\x80\x02ctorch", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "not a safetensors file"),
        (with_header(b"[" * 5000), "cannot be parsed"),
        (with_header(b"[]"), "cannot be parsed"),
        (with_header(b'{"x": {"dtype": "F32"}}'), "cannot be parsed"),
        (with_header(json.dumps({"__metadata__": {}}).encode()) + b"12345", "is damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, data, words):
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelLoadError, match=words):
        read_header(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match=r"cannot be read \(No such file"):
        read_header(tmp_path / "none.safetensors")
