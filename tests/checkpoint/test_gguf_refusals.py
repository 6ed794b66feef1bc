"""GGUF files that are damaged, or mean what is not built: one line, and nothing left behind."""

import numpy as np
import pytest
from gguf import GGUFEndian
from gguf_samples import TOKENS, gguf_tensors, metadata, tiny_model, write_gguf

from detinfer.checkpoint.loader import check_model, resolve_model
from detinfer.errors import DetinferError, ModelLoadError, UnsupportedModelError


def refuse(path, cache, kind, words):
    with pytest.raises(DetinferError, match=words) as caught:
        resolve_model(str(path))
    assert type(caught.value) is kind
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    left = [file.name for file in (cache / "models").iterdir() if not file.name.endswith(".lock")]
    assert left == []


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"tokenizer.ggml.pre": "chatglm-bpe"}, UnsupportedModelError, "pre = 'chatglm-bpe'"),
        ({"tokenizer.ggml.pre": None}, UnsupportedModelError, "pre = None is not known"),
        ({"tokenizer.ggml.model": "llama"}, UnsupportedModelError, "tokenizer 'llama'"),
        ({"tokenizer.ggml.add_space_prefix": True}, UnsupportedModelError, "add_space_prefix"),
        ({"llama.expert_count": 8}, UnsupportedModelError, "llama.expert_count = 8"),
        ({"llama.rope.scaling.type": "yarn"}, UnsupportedModelError, "RoPE scaling 'yarn'"),
        ({"llama.rope.dimension_count": 8}, UnsupportedModelError, "rope.dimension_count"),
        ({"split.count": 3}, UnsupportedModelError, "llama-gguf-split"),
        ({"llama.block_count": None}, ModelLoadError, "llama.block_count is missing"),
        ({"llama.block_count": "2"}, ModelLoadError, "got '2', expected int"),
        (
            {"llama.block_count": 3},
            ModelLoadError,
            "got 3, but .* the tensors of 2 layers",
        ),
        ({"llama.block_count": 0}, ModelLoadError, "block_count: got 0, expected 1 to"),
        ({"llama.block_count": 2**32 - 1}, ModelLoadError, "block_count: got 4294967295, expected"),
        ({"llama.block_count": 2**31 - 1}, ModelLoadError, "got 2147483647, but the file has"),
        ({"llama.block_count": True}, ModelLoadError, "got True, expected int"),
        ({"llama.embedding_length": 0}, ModelLoadError, "embedding_length: got 0, expected 1"),
        ({"llama.embedding_length": 2**31 - 1}, ModelLoadError, "has shape|no model can be made"),
        ({"llama.context_length": 0}, ModelLoadError, "context_length: got 0, expected 1"),
        ({"llama.attention.head_count": 0}, ModelLoadError, "head_count: got 0, expected 1"),
        ({"llama.attention.head_count": 3}, ModelLoadError, "head_count_kv: got 2, expected a di"),
        (
            {"llama.attention.head_count": 6, "llama.attention.key_length": None},
            ModelLoadError,
            "head_count: got 6, expected a divisor of embedding_length 64",
        ),
        ({"llama.attention.head_count_kv": 0}, ModelLoadError, "head_count_kv: got 0, expected 1"),
        ({"llama.attention.head_count_kv": 3}, ModelLoadError, "head_count_kv: got 3, expected a"),
        ({"llama.attention.head_count_kv": [2, 2]}, ModelLoadError, "head_count_kv: got .*, expec"),
        ({"llama.attention.key_length": 7}, ModelLoadError, "has shape|no model can be made"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, ModelLoadError, "epsilon: got 0.0, exp"),
        ({"llama.attention.layer_norm_rms_epsilon": "1e-6"}, ModelLoadError, "got '1e-6', expect"),
        ({"llama.rope.freq_base": 0.0}, ModelLoadError, "rope.freq_base: got 0.0, expected above"),
        ({"llama.rope.freq_base": float("nan")}, ModelLoadError, "freq_base: got nan, expected"),
        ({"llama.rope.scaling.type": "linear"}, ModelLoadError, "rope.scaling.factor is missing"),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": float("inf")},
            ModelLoadError,
            "rope.scaling.factor: got inf, expected above 0",
        ),
        ({"llama.feed_forward_length": 128}, ModelLoadError, r"shape \[96, 64\], its metadata"),
        ({"tokenizer.ggml.eos_token_id": 4096}, ModelLoadError, "got 4096, expected 0..266"),
        ({"tokenizer.ggml.merges": ["h zz"]}, ModelLoadError, "merge"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], "a"]}, ModelLoadError, "266 different"),
    ],
)
def test_metadata_not_understood_is_named(tmp_path, cache, change, kind, words):
    pairs = {k: v for k, v in (metadata() | change).items() if v is not None}
    refuse(write_gguf(tmp_path / "m.gguf", pairs=pairs), cache, kind, words)


def test_unknown_architecture_is_named(tmp_path, cache):
    path = write_gguf(
        tmp_path / "m.gguf", "mamba", tensors=gguf_tensors(tiny_model()), pairs=metadata("mamba")
    )
    refuse(path, cache, UnsupportedModelError, "architecture 'mamba'")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("rope_freqs.weight", UnsupportedModelError, "scaled RoPE"),
        ("blk.0.ffn_gate_inp.weight", UnsupportedModelError, "ffn_gate_inp"),
        ("blk.0.attn_q_norm.weight", UnsupportedModelError, "has no place in a llama model"),
    ],
)
def test_a_tensor_without_a_place_is_named(tmp_path, cache, name, kind, words):
    tensors = gguf_tensors(tiny_model()) | {name: np.ones(16, np.float32)}
    refuse(write_gguf(tmp_path / "m.gguf", tensors=tensors), cache, kind, words)


def test_a_missing_tensor_is_named(tmp_path, cache):
    tensors = gguf_tensors(tiny_model())
    del tensors["blk.1.ffn_down.weight"]
    path = write_gguf(tmp_path / "m.gguf", tensors=tensors)
    refuse(path, cache, ModelLoadError, "layers.1.mlp.down_proj.weight is missing")


@pytest.mark.parametrize(
    ("old", "words"),
    [
        (b"<|im_start|>", "metadata tokenizer.ggml.tokens: holds text that is not UTF-8"),
        (b"{% for m in", "metadata tokenizer.chat_template: holds text that is not UTF-8"),
        (b"smollm", "metadata tokenizer.ggml.pre: holds text that is not UTF-8"),
        (b"llama.block_count", "truncated or damaged .'utf-8'"),
        (b"blk.0.attn_q.weight", "truncated or damaged .'utf-8'"),
    ],
)
def test_text_that_is_not_utf_8_is_named(tmp_path, cache, old, words):
    path = write_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, b"\xff" + old[1:], 1))
    refuse(path, cache, ModelLoadError, words)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path, cache, value):
    tensors = gguf_tensors(tiny_model())
    tensors["blk.1.ffn_down.weight"][3, 5] = value
    path = write_gguf(tmp_path / "m.gguf", tensors=tensors)
    refuse(path, cache, ModelLoadError, "blk.1.ffn_down.weight holds NaN or infinity")


@pytest.mark.parametrize("keep", [0, 3, 4, 7, 9, 100, 3000, -5000, -1])
def test_a_file_cut_short_is_refused(tmp_path, cache, keep):
    path = write_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    short = "it begins with b'(GGU)?', expected" if 0 <= keep < 4 else "truncated or damaged"
    refuse(path, cache, ModelLoadError, short)


def test_big_endian_numbers_are_refused_by_name(tmp_path, cache):
    path = write_gguf(tmp_path / "m.gguf", order=GGUFEndian.BIG)
    words = "big-endian numbers.*gguf-convert-endian FILE little"
    refuse(path, cache, UnsupportedModelError, words)
    with pytest.raises(UnsupportedModelError, match=words):
        check_model(str(path))


@pytest.mark.parametrize("version", [1, 4, 0x7FFF0001])
def test_another_version_of_the_format_is_named(tmp_path, cache, version):
    path = write_gguf(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    data[4:8] = version.to_bytes(4, "little")
    path.write_bytes(data)
    refuse(path, cache, UnsupportedModelError, f"GGUF version {version}, expected 2 or 3")


def test_a_file_of_another_kind_is_refused(tmp_path, cache):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"<!DOCTYPE html>" * 1000)
    refuse(path, cache, ModelLoadError, "not a GGUF file: it begins with b'<!DO'")
