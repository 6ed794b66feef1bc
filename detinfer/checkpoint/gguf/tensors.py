"""GGUF tensor names and layouts, and Hugging Face's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy.typing as npt

from detinfer.errors import UnsupportedModelError

_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTER_NAME = re.compile(r"(\w+)\.(weight|bias)")


def hf_name(path: Path, name: str) -> str:
    """Hugging Face's name of a GGUF tensor.

    Raises:
        UnsupportedModelError: a tensor that the supported architectures do not have.
    """
    if (match := _LAYER_NAME.fullmatch(name)) and match[2] in _LAYER:
        return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"
    if (match := _OUTER_NAME.fullmatch(name)) and match[1] in _OUTER:
        return f"{_OUTER[match[1]]}.{match[2]}"
    reason = "scaled RoPE" if name.startswith("rope_") else "a tensor not known here"
    raise UnsupportedModelError(f"{path}: {name}: {reason} cannot be taken from a GGUF file yet")


def restore_layout(config: dict[str, Any], name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Undo the reordering that llama.cpp's converter applies to a tensor.

    For ``llama`` it interleaves the two halves of each head of q and k, since it rotates
    neighbouring elements, not halves (``LlamaModel.permute`` in its convert_hf_to_gguf.py).
    """
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    match = _LAYER_NAME.fullmatch(name)
    if config["model_type"] != "llama" or match is None or match[2] not in heads:
        return values
    split = values.reshape(heads[match[2]], -1, 2, *values.shape[1:])  # [head, half, 2, ...]
    return split.swapaxes(1, 2).reshape(values.shape)
