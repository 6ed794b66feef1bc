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
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
# All experts of a layer in one tensor, [experts, outputs, inputs]; gate above up, as they are read.
_EXPERTS = {
    "ffn_gate_exps": "mlp.experts.gate_up_proj",
    "ffn_up_exps": "mlp.experts.gate_up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
# What chooses between experts is computed by rule 1, whatever the file has it in.
_ROUTERS = (".mlp.gate.weight", ".mlp.shared_expert_gate.weight")
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTER_NAME = re.compile(r"(\w+)\.(weight|bias)")


def hf_name(path: Path, name: str) -> str:
    """Hugging Face's name of a GGUF tensor; experts' gate and up are one there.

    Raises:
        UnsupportedModelError: a tensor that the supported architectures do not have.
    """
    if (match := _LAYER_NAME.fullmatch(name)) and match[2] in _LAYER:
        return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"
    if match and match[2] in _EXPERTS and match[3] == "weight":
        return f"model.layers.{match[1]}.{_EXPERTS[match[2]]}"
    if (match := _OUTER_NAME.fullmatch(name)) and match[1] in _OUTER:
        return f"{_OUTER[match[1]]}.{match[2]}"
    reason = "scaled RoPE" if name.startswith("rope_") else "a tensor not known here"
    raise UnsupportedModelError(f"{path}: {name}: {reason} cannot be taken from a GGUF file yet")


def is_router(name: str) -> bool:
    """Return whether a tensor, by Hugging Face's name, weighs experts."""
    return name.endswith(_ROUTERS)


def restore_layout(config: dict[str, Any], name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Undo the reordering that llama.cpp's converter applies to a tensor.

    For ``llama`` and ``mixtral`` it interleaves the two halves of each head of q and k, since it
    rotates neighbouring elements, not halves (``LlamaModel.permute`` in its convert_hf_to_gguf.py).
    """
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    match = _LAYER_NAME.fullmatch(name)
    if config["model_type"] not in ("llama", "mixtral") or not match or match[2] not in heads:
        return values
    split = values.reshape(heads[match[2]], -1, 2, *values.shape[1:])  # [head, half, 2, ...]
    return split.swapaxes(1, 2).reshape(values.shape)
