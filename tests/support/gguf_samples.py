"""Small GGUF files made from tiny random models, the way llama.cpp's converter makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "Ġ Ġ", "ĠĠ ĠĠ", "Ġ w", "1 2", "12 3"]
TOKENS = SPECIAL + list(bytes_to_unicode().values()) + [m.replace(" ", "") for m in MERGES]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEADS, KV_HEADS = 4, 2
# Where K-quants' blocks have their binary16 factors, and what makes weights of them.
FACTORS = {
    Kind.Q2_K: {80: 2e-3, 82: 2e-3},
    Kind.Q4_K: {0: 1e-4, 2: 1e-3},
    Kind.Q5_K: {0: 5e-5, 2: 1e-3},
    Kind.Q6_K: {208: 1e-4},
}


def tiny_model(arch: str = "llama", tied: bool = False, seed: int = 0, wide: bool = False) -> Any:
    """Two layers of width 64 in float32; weights need more than bfloat16's bits.

    Args:
        wide: with rows of 256 values, as K-quants' blocks have.
    """
    width, inner, head = (256, 512, 64) if wide else (64, 96, 16)
    config = AutoConfig.for_model(
        arch,
        vocab_size=len(TOKENS),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=head,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():  # norms and biases start as ones and zeros
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter.data, 1.0, 0.2)
    return model


def gguf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, stem = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[stem]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def gguf_tensors(model: Any) -> dict[str, np.ndarray]:
    """The model's tensors by GGUF name, q and k permuted for llama."""
    tensors = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy().copy()
        if model.config.model_type == "llama" and ".q_proj." in name:
            values = permute(values, HEADS)
        if model.config.model_type == "llama" and ".k_proj." in name:
            values = permute(values, KV_HEADS)
        tensors[gguf_name(name)] = values
    return tensors


def metadata(arch: str = "llama", pre: str = "smollm", wide: bool = False) -> dict[str, Any]:
    """Key-value pairs as llama.cpp's converter writes them; change or remove some to spoil them."""
    width, inner, head = (256, 512, 64) if wide else (64, 96, 16)
    return {
        f"{arch}.block_count": 2,
        f"{arch}.context_length": 128,
        f"{arch}.embedding_length": width,
        f"{arch}.feed_forward_length": inner,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.key_length": head,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def quantize(values: np.ndarray, kind: Kind) -> np.ndarray:
    """Rows of blocks: of the values, or of random ones where gguf has no way to make them."""
    try:
        return gguf.quantize(values, kind)
    except NotImplementedError:
        count, size = gguf.GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(values.view(np.uint32).reshape(-1)[:8])
        blocks = rng.integers(0, 256, (values.size // count, size), np.uint8)
        for at, factor in FACTORS[kind].items():
            scales = rng.normal(0, factor, (len(blocks), 1)).astype("<f2")
            blocks[:, at : at + 2] = scales.view(np.uint8)
        return blocks.reshape(*values.shape[:-1], -1)


def write_gguf(
    path: Path,
    arch: str = "llama",
    *,
    pairs: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    kind: Kind = Kind.F32,
    kinds: Mapping[str, Kind] = MappingProxyType({}),
    order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> Path:
    """Write a file; matrices are stored as ``kind``, or by name in ``kinds``, vectors in F32."""
    writer = gguf.GGUFWriter(path, arch, endianess=order)
    for key, value in (metadata(arch) if pairs is None else pairs).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, values in (gguf_tensors(tiny_model(arch)) if tensors is None else tensors).items():
        stored = Kind.F32 if values.ndim == 1 else kinds.get(name, kind)
        if stored == Kind.F32:
            writer.add_tensor(name, values.astype(np.float32))
        elif stored == Kind.F16:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
