"""Work and its least time are those that are counted by hand; limits are what a machine has."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import limits as limits_module
from benchmarks.limits import Limits
from benchmarks.roofline import Model, Work

# Two layers: q and o 64 x 64, k and v 64 x 32, three of 64 x 128; a head of 100 x 64.
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "tie_word_embeddings": True,
}
LIMITS = Limits(bandwidth=1000.0, int8=400.0, float32=100.0)


def _folder(path, tied: bool, packed: bool):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": tied}))
    # As stored: binary16 numbers, or bytes of blocks.
    matrix = np.zeros((10, 20), np.uint8 if packed else np.float16)
    tensors = {"model.embed_tokens.weight": np.zeros((100, 64), np.float16), "a.weight": matrix}
    tensors["norm.weight"] = np.zeros(64, np.float32)
    save_file(tensors, path / "model.safetensors")
    return path


def test_a_folder_tells_shapes_and_stored_bytes(tmp_path):
    tied = Model.read(_folder(tmp_path / "tied", tied=True, packed=False))
    assert tied == Model(
        layer_weights=2 * LAYER,
        head_weights=6400,
        bytes=2 * (6400 + 200),
        packed=False,
        kv_bytes=2 * 2 * 2 * 16 * 4,
        attention=2 * 2 * 64,
    )
    # A table that only looks tokens up is not read; the head has a matrix of its own.
    other = Model.read(_folder(tmp_path / "other", tied=False, packed=True))
    assert (other.bytes, other.packed) == (200, True)


MODEL = Model(layer_weights=1000, head_weights=100, bytes=550, packed=True, kv_bytes=8, attention=6)


def test_a_decoding_step_reads_weights_once_and_each_sequences_cache():
    assert MODEL.decode(3, 10) == Work(550 + 3 * 10 * 8, 3 * 1100, 3 * 10 * 6)
    plain = MODEL.decode(1, 0)._replace(int8=0, float32=1100)
    assert Model(1000, 100, 550, False, 8, 6).decode(1, 0) == plain


def test_a_prefill_reads_weights_once_a_step_and_sees_what_is_before():
    # Tokens see 1 + 2 + 3 + 4 + 5 keys; chunks of two end at 2, 4 and 5; logits of the last.
    assert MODEL.prefill(1, 5, 2) == Work(3 * 550 + 11 * 8, 5 * 1000 + 100, 15 * 6)
    # Four prompts of two in steps of four.
    assert MODEL.prefill(4, 2, 4) == Work(2 * 550 + 8 * 8, 4 * 2100, 4 * 3 * 6)


def test_the_slower_of_memory_and_arithmetic_bounds_a_step():
    assert Work(bytes=500, int8=100, float32=10).seconds(LIMITS) == 0.5
    assert Work(bytes=500, int8=100, float32=50).seconds(LIMITS) == 0.25 + 0.5


def test_a_caches_bandwidth_is_of_what_a_longer_context_adds():
    assert MODEL.kv_share((10, 1.0), (60, 1.8), LIMITS) == pytest.approx(400 / 0.8 / 1000)


def test_limits_are_a_machines(monkeypatch):
    monkeypatch.setattr(limits_module, "READ", 1 << 20)
    monkeypatch.setattr(limits_module, "TURNS", 1000)
    found = limits_module.measure(threads=1, repeats=2)
    assert all(1e7 < value < 1e14 for value in found)
    with pytest.raises(ValueError, match="threads"):
        limits_module.measure(threads=10_000)
