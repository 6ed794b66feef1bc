"""Small GGUF files of mixtures of experts, as llama.cpp's converter makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_samples import HEADS, KV_HEADS, TOKENS, gguf_name, metadata, permute, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM

EXPERTS, USED = 5, 3  # a sum of two numbers has no order
WIDTH, INNER, SHARED = 256, 256, 512
# A file's architecture, and transformers' name of it.
ARCHITECTURES = {"llama": "mixtral", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
ROUTERS = MappingProxyType({f"blk.{i}.ffn_gate_inp.weight": Kind.F32 for i in range(2)})


def experts_model(arch: str) -> Any:
    """Two layers, each of five experts of which a token has three; random weights."""
    sizes: dict[str, Any] = {"intermediate_size": INNER, "num_local_experts": EXPERTS}
    if arch != "llama":
        sizes = {"moe_intermediate_size": INNER, "num_experts": EXPERTS}
        sizes |= {"intermediate_size": 1024, "norm_topk_prob": arch == "qwen3moe"}
    if arch == "qwen2moe":
        sizes["shared_expert_intermediate_size"] = SHARED
    if arch != "qwen2moe":
        sizes["head_dim"] = WIDTH // HEADS
    config = AutoConfig.for_model(
        ARCHITECTURES[arch],
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        num_experts_per_tok=USED,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **sizes,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter.data, 1.0, 0.2)
        elif "gate.weight" in name or "experts" in name:  # routers that choose, experts that differ
            torch.nn.init.normal_(parameter.data, 0.0, 0.1)
    return model


def experts_tensors(arch: str) -> dict[str, np.ndarray]:
    """The model's tensors by GGUF name: gate and up apart, q and k of llama permuted."""
    tensors = {}
    for name, parameter in experts_model(arch).named_parameters():
        values = parameter.detach().numpy().copy()
        layer, _, part = name.removeprefix("model.layers.").partition(".")
        stem = part.removesuffix(".weight")
        if part == "mlp.experts.gate_up_proj":
            tensors[f"blk.{layer}.ffn_gate_exps.weight"] = values[:, :INNER]
            tensors[f"blk.{layer}.ffn_up_exps.weight"] = values[:, INNER:]
        elif part == "mlp.experts.down_proj":
            tensors[f"blk.{layer}.ffn_down_exps.weight"] = values
        elif stem in NAMES:
            tensors[f"blk.{layer}.{NAMES[stem]}.weight"] = values.squeeze()
        else:
            heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(stem)
            turned = arch == "llama" and heads is not None
            tensors[gguf_name(name)] = permute(values, heads) if turned else values
    return tensors


def experts_metadata(arch: str) -> dict[str, Any]:
    """Key-value pairs of such a file."""
    pairs = metadata(arch, wide=True)
    pairs |= {f"{arch}.expert_count": EXPERTS, f"{arch}.expert_used_count": USED}
    pairs[f"{arch}.feed_forward_length"] = INNER if arch == "llama" else 1024
    if arch != "llama":
        pairs[f"{arch}.expert_feed_forward_length"] = INNER
    if arch == "qwen2moe":
        pairs[f"{arch}.expert_shared_feed_forward_length"] = SHARED
    return pairs


def write_experts(
    path: Path,
    arch: str,
    kind: Kind,
    kinds: Mapping[str, Kind] = MappingProxyType({}),
    tensors: dict[str, np.ndarray] | None = None,
    pairs: dict[str, Any] | None = None,
) -> Path:
    """Write a file; matrices and experts in ``kind``, or by name in ``kinds``, routers in F32."""
    return write_gguf(
        path,
        arch,
        tensors=tensors or experts_tensors(arch),
        pairs=pairs or experts_metadata(arch),
        kind=kind,
        kinds={**ROUTERS, **kinds},
    )
