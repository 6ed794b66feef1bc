"""Tiny random models of every architecture, and a runner that is as small as one can be."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from kernel_inputs import numbers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from detinfer import ops
from detinfer.batch import Batch
from detinfer.models.attention import ATTN_IMPLEMENTATION
from detinfer.models.context import ForwardContext
from detinfer.models.patches import PatchReport, patch_model
from detinfer.runner.plans import run_modules

VOCAB = 131
MAX_LEN = 256
PAGES = 16

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LEN,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Three experts a token or more: two numbers have one sum, whatever their order.
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 3, "num_experts": 5, "num_local_experts": 5}
_WINDOWED: dict[str, Any] = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
}
_GEMMA: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 16, **_WINDOWED}

# What each architecture needs beyond _COMMON; chosen so that its own features are exercised.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "tie_word_embeddings": True},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 6},
    "qwen3": {"head_dim": 20},
    "mistral": {"sliding_window": 6, "head_dim": 12},
    "gemma": {"head_dim": 16},
    "gemma2": {**_GEMMA, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 4.0},
    "gemma3_text": _GEMMA,
    "gemma4_text": {
        **_WINDOWED,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    "smollm3": {"no_rope_layers": [1, 0]},
    "phi": {},
    "phi3": {"sliding_window": 6},
    "olmo": {"clip_qkv": 1.0},
    "olmo2": {},
    "olmo3": _WINDOWED,
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.7, "embedding_multiplier": 5.0},
    "cohere": {"use_qk_norm": True, "logit_scale": 0.3},
    "cohere2": {**_WINDOWED, "head_dim": 12},
    "stablelm": {"qk_layernorm": True, "partial_rotary_factor": 0.5},
    "starcoder2": {"sliding_window": 6},
    "glm4": {"head_dim": 12},
    "nemotron": {"head_dim": 12},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt2": {"n_embd": 72, "n_head": 6, "n_layer": 2, "n_positions": MAX_LEN},
    "opt": {"ffn_dim": 100, "word_embed_proj_dim": 40},
    "ernie4_5": {"head_dim": 12},
    "seed_oss": {"head_dim": 12},
    "exaone4": _WINDOWED,
    "arcee": {},
    "helium": {"head_dim": 12},
    "bitnet": {},
    "mixtral": {**_EXPERTS, "num_experts_per_tok": 4},
    "qwen2_moe": {**_EXPERTS, "moe_intermediate_size": 36, "shared_expert_intermediate_size": 44},
    "qwen3_moe": {**_EXPERTS, "moe_intermediate_size": 36, "norm_topk_prob": True, "head_dim": 12},
    "olmoe": _EXPERTS,
    "gpt_oss": {**_EXPERTS, **_WINDOWED, "num_experts_per_tok": 4, "head_dim": 16},
    # Its router knows two experts a token only.
    "phimoe": {**_EXPERTS, "num_experts_per_tok": 2, "num_local_experts": 4},
    "granitemoe": {**_EXPERTS, "logits_scaling": 3.0},
    "deepseek_v3": {
        **_EXPERTS,
        "num_local_experts": 6,
        "n_routed_experts": 6,
        "n_group": 3,
        "topk_group": 2,
        "moe_intermediate_size": 36,
        "first_k_dense_replace": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 20,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "v_head_dim": 10,
        "num_key_value_heads": 6,
        "head_dim": 8,
    },
}


def tiny_config(architecture: str, **overrides: Any) -> Any:
    """A configuration of an architecture, about 10^5 parameters."""
    given = {**_COMMON, **ARCHITECTURES.get(architecture, {}), **overrides}
    return CONFIG_MAPPING[architecture](**given)


def tiny_model(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A model with every parameter random, norms and biases too; eager attention."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation="eager", dtype=torch.float32
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name or "embed_scale" in name:
                continue
            if tensor.ndim == 1 or name.endswith("_bias") or "norm" in name:
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
            elif "experts" in name:
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
            elif "gate.weight" in name or "router.weight" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model if dtype == torch.float32 else _round(model, dtype)


def _round(model: Any, dtype: torch.dtype) -> Any:
    """As a checkpoint of ``dtype`` loads: all in it but the rotary buffers."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, buffer in model.named_buffers():
        if "inv_freq" not in name:
            buffer.data = buffer.data.to(dtype)
    return model


class TinyRunner:
    """A model runner without an engine: patches the model, owns a cache, runs batches."""

    def __init__(
        self, model: Any, dtype: torch.dtype = torch.float32, allow_fast: bool = True
    ) -> None:
        model.config._attn_implementation = ATTN_IMPLEMENTATION
        self.model = model
        self.report: PatchReport = patch_model(model, dtype, MAX_LEN, allow_fast)
        self.cache = ops.KVCache(self.report.cache_specs, PAGES, dtype)
        for pages in numbers(self.cache):
            pages.fill_(torch.nan)  # a stale page that is read shows

    def forward(self, batch: Batch) -> torch.Tensor:
        tensors = ops.BatchTensors(batch.positions, batch.query_start, batch.block_tables)
        context = ForwardContext(tensors, self.cache, batch.deterministic)
        logits, self.hidden = run_modules(self.model, batch, context)
        return logits

    def logits(self, batch: Batch) -> npt.NDArray[np.float32]:
        """The same as an array."""
        return self.forward(batch).numpy()


def make_batch(rows: list[tuple[list[int], int, list[int]]], deterministic: bool = True) -> Batch:
    """A batch of (token ids, position of the first, pages), every row's logits."""
    lengths = [len(ids) for ids, _, _ in rows]
    tables = np.zeros((len(rows), max(len(pages) for _, _, pages in rows)), dtype=np.int32)
    for row, (_, _, pages) in enumerate(rows):
        tables[row, : len(pages)] = pages
    return Batch(
        input_ids=np.array([t for ids, _, _ in rows for t in ids], dtype=np.int32),
        positions=np.concatenate(
            [
                np.arange(n, dtype=np.int32) + first
                for n, (_, first, _) in zip(lengths, rows, strict=True)
            ]
        ),
        query_start=np.cumsum([0, *lengths], dtype=np.int32),
        block_tables=tables,
        logit_rows=np.arange(sum(lengths), dtype=np.int32),
        deterministic=deterministic,
    )


def tokens(count: int, seed: int) -> list[int]:
    """Random token ids below VOCAB."""
    return [int(t) for t in np.random.default_rng(seed).integers(3, VOCAB, count)]
