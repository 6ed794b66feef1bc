"""GGUF files that are damaged, or mean what is not built: one line, and nothing left behind."""

import errno

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFReader
from gguf_experts import write_experts
from gguf_samples import TOKENS, gguf_tensors, metadata, tiny_model, write_gguf
from packed_samples import SCALES

from detinfer.checkpoint.gguf.convert import convert_gguf
from detinfer.checkpoint.loader import check_model, resolve_model
from detinfer.errors import DetinferError, ModelLoadError, UnsupportedModelError


def refuse(path, cache, kind, words, weights="auto"):
    with pytest.raises(DetinferError, match=words) as caught:
        resolve_model(str(path), weights=weights)
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
        ({"llama.expert_count": 8}, ModelLoadError, "llama.expert_used_count is missing"),
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
        (
            "blk.0.ffn_gate_inp.weight",
            UnsupportedModelError,
            "mlp.gate.weight has no place in a ll",
        ),
        ("blk.0.ffn_norm_exps.weight", UnsupportedModelError, "ffn_norm_exps"),
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


def place(path, name):
    """A tensor as gguf's reader has it, which knows where its bytes are."""
    [found] = [tensor for tensor in GGUFReader(path).tensors if tensor.name == name]
    return found


def wide(path, kind):
    tensors = gguf_tensors(tiny_model(wide=True))
    return write_gguf(path, tensors=tensors, pairs=metadata(wide=True), kind=kind)


@pytest.mark.parametrize(("kind", "at"), [(k, at) for k in SCALES for at in SCALES[k]])
@pytest.mark.parametrize("bits", [0x7E00, 0x7C01, 0xFC00], ids=["nan", "signalling", "-inf"])
def test_a_scale_that_is_no_number_is_named(tmp_path, cache, kind, at, bits):
    kind = GGMLQuantizationType[kind]
    path, name = wide(tmp_path / "m.gguf", kind), "blk.1.ffn_down.weight"
    data, tensor = bytearray(path.read_bytes()), place(path, name)
    last = tensor.data_offset + tensor.n_bytes - GGML_QUANT_SIZES[kind][1] + at
    data[last : last + 2] = bits.to_bytes(2, "little")
    path.write_bytes(data)
    words = f"tensor {name} has a scale that is NaN or infinity"
    refuse(path, cache, ModelLoadError, words, "packed")


def test_the_largest_scale_is_a_number(tmp_path, cache):
    path, name = wide(tmp_path / "m.gguf", GGMLQuantizationType.Q8_0), "blk.1.ffn_down.weight"
    data, tensor = bytearray(path.read_bytes()), place(path, name)
    data[tensor.data_offset : tensor.data_offset + 2] = (0x7BFF).to_bytes(2, "little")
    path.write_bytes(data)
    assert resolve_model(str(path), weights="packed").weight_format.startswith("packed Q8_0")


def change_info(path, name, part, value):
    """Writes another number into what a file says of a tensor: its last dimension, kind, offset."""
    data, parts = bytearray(path.read_bytes()), place(path, name).field.parts
    at = place(path, name).field.offset + sum(one.nbytes for one in parts[:part])
    data[at : at + parts[part].itemsize] = value.to_bytes(parts[part].itemsize, "little")
    path.write_bytes(data)


ROW, KIND, OFFSET = 3, 4, 5


@pytest.mark.parametrize("weights", ["packed", "dequantized"])
@pytest.mark.parametrize(
    ("part", "value", "kind", "words"),
    [
        (ROW, 48, ModelLoadError, "has rows of 48 values, which are no whole blocks of 32"),
        (ROW, 128, ModelLoadError, r"begins within the bytes of tensor blk.0.ffn_up.weight"),
        (ROW, 2**40, ModelLoadError, "tensor blk.0.ffn_up.weight ends at byte|within the bytes of"),
        (ROW, 2**63 + 32, ModelLoadError, "ends at byte|within the bytes of"),
        (ROW, 32, ModelLoadError, "but tensor blk.0.ffn_up.weight ends at .*: expected no gap"),
        (ROW, 0, ModelLoadError, "but tensor blk.0.ffn_up.weight ends at .*: expected no gap"),
        (KIND, 8, ModelLoadError, "begins within the bytes of tensor blk.0.ffn_up.weight"),
        (KIND, 12, ModelLoadError, "has rows of 64 values, which are no whole blocks of 256"),
        (KIND, 999, UnsupportedModelError, "blk.0.ffn_up.weight is stored in format 999, which"),
        (OFFSET, 0, ModelLoadError, "begins within the bytes of tensor"),
        (OFFSET, 2**20, ModelLoadError, "tensor blk.0.ffn_up.weight ends|expected no gap"),
        (OFFSET, 2**64 - 32, ModelLoadError, "tensor blk.0.ffn_up.weight ends|expected no gap"),
    ],
)
def test_blocks_that_do_not_fit_their_tensor_are_named(
    tmp_path, cache, part, value, kind, words, weights
):
    path = write_gguf(tmp_path / "m.gguf", kind=GGMLQuantizationType.Q4_0)
    change_info(path, "blk.0.ffn_up.weight", part, value)
    refuse(path, cache, kind, words, weights)


def test_a_table_of_one_tensor_less_is_refused(tmp_path, cache):
    """All others' bytes then begin elsewhere, and are numbers all the same."""
    path = write_gguf(tmp_path / "m.gguf", kind=GGMLQuantizationType.Q4_0)
    data = bytearray(path.read_bytes())
    data[8:16] = (int.from_bytes(data[8:16], "little") - 1).to_bytes(8, "little")
    path.write_bytes(data)
    refuse(path, cache, ModelLoadError, r"the file at \d+: expected no bytes after it", "packed")


def test_bytes_after_the_last_tensor_are_refused(tmp_path, cache):
    path = write_gguf(tmp_path / "m.gguf", kind=GGMLQuantizationType.Q4_0)
    path.write_bytes(path.read_bytes() + bytes(40))
    refuse(path, cache, ModelLoadError, "expected no bytes after it", "packed")


@pytest.mark.parametrize("weights", ["packed", "dequantized"])
@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight", "blk.0.ffn_up_exps.weight"])
def test_a_scale_that_is_no_number_is_named_wherever_it_is(tmp_path, cache, name, weights):
    path = write_experts(tmp_path / "m.gguf", "llama", GGMLQuantizationType.Q4_K)
    data, tensor = bytearray(path.read_bytes()), place(path, name)
    last = tensor.data_offset + tensor.n_bytes - 144 + 2
    data[last : last + 2] = (0x7C00).to_bytes(2, "little")
    path.write_bytes(data)
    words = f"tensor {name} (has a scale that is|holds) NaN or infinity"
    refuse(path, cache, ModelLoadError, words, weights)


def test_blocks_of_the_cache_that_were_changed_later_are_made_anew(tmp_path, cache):
    path = wide(tmp_path / "m.gguf", GGMLQuantizationType.Q4_1)
    [weights] = resolve_model(str(path), weights="packed").weights
    whole = weights.read_bytes()
    for damaged in (whole[:-7], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(damaged)
        resolve_model(str(path), weights="packed")
        assert weights.read_bytes() == whole


def test_a_file_that_changes_while_it_is_converted_is_refused(tmp_path, cache, monkeypatch):
    path = wide(tmp_path / "m.gguf", GGMLQuantizationType.Q4_1)

    def convert(*given):
        convert_gguf(*given)
        path.write_bytes(path.read_bytes()[:-1] + b"x")

    monkeypatch.setattr("detinfer.checkpoint.loader.convert_gguf", convert)
    refuse(path, cache, ModelLoadError, "changed while the model was loaded", "packed")


@pytest.mark.parametrize("keep", [9, 3000, -5000, -40])
def test_a_file_of_blocks_cut_short_is_refused(tmp_path, cache, keep):
    path = write_gguf(tmp_path / "m.gguf", kind=GGMLQuantizationType.Q4_0)
    path.write_bytes(path.read_bytes()[:keep])
    refuse(path, cache, ModelLoadError, "truncated or damaged", "packed")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("detinfer.checkpoint.gguf.convert.write_weights", full)
    path = wide(tmp_path / "m.gguf", GGMLQuantizationType.Q4_1)
    with pytest.raises(ModelLoadError, match="no disk space left"):
        resolve_model(str(path), weights="packed")
    assert not [file for file in (cache / "models").iterdir() if file.suffix != ".lock"]
