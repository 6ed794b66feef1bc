"""A Llama-like model's forward pass in plain NumPy, after docs/arithmetic.md and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from detinfer.kernels import reference, reference_packed
from detinfer.kernels.constants import BLOCK_FORMATS

Array = npt.NDArray[np.float32]


class NumpyLlama:
    """Llama, Qwen 2, Qwen 3 or one of them with experts, as a converted folder has it.

    Weights in blocks stay so.

    Args:
        folder: with config.json and model.safetensors.
        cos: of the rotary angles, by position. [positions, head_dim / 2]
        sin: likewise.
        weights: the file of weights, if it is another.
        cache_dtype: of keys and values.
    """

    def __init__(
        self,
        folder: Path,
        cos: Array,
        sin: Array,
        weights: Path | None = None,
        cache_dtype: str = "float32",
    ) -> None:
        self.cache_dtype = cache_dtype
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.cos, self.sin = cos, sin
        self.weights: dict[str, Any] = {}
        with safe_open(weights or folder / "model.safetensors", "pt") as file:
            formats = file.metadata()
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                kind = formats.get(name)
                if tensor.ndim == 3:  # experts
                    self.weights[name] = [_weight(one, kind) for one in tensor]
                else:
                    self.weights[name] = _weight(tensor, kind)

    def logits(self, ids: list[int]) -> Array:
        """Logits of every position. [T, vocabulary]"""
        config, positions = self.config, np.arange(len(ids))
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        table = self.weights["model.embed_tokens.weight"]
        x = self._rows(table, np.array(ids))
        for i in range(config["num_hidden_layers"]):
            own = f"model.layers.{i}."
            h = self._norm(f"{own}input_layernorm", x)
            q, k, v = (self._linear(f"{own}self_attn.{n}_proj", h) for n in "qkv")
            q, k, v = (
                y.reshape(len(ids), n, -1) for y, n in ((q, heads), (k, kv_heads), (v, kv_heads))
            )
            if f"{own}self_attn.q_norm.weight" in self.weights:
                q, k = (self._norm(f"{own}self_attn.{n}_norm", y) for n, y in (("q", q), ("k", k)))
            cos, sin = self.cos[positions, None], self.sin[positions, None]
            q, k = reference.rope(q, cos, sin), reference.rope(k, cos, sin)
            scale = config["head_dim"] ** -0.5
            o = reference.attention(q, positions, k, v, scale, cache_dtype=self.cache_dtype)
            x = x + self._linear(f"{own}self_attn.o_proj", o.reshape(len(ids), -1))
            h = self._norm(f"{own}post_attention_layernorm", x)
            routed = f"{own}mlp.gate.weight" in self.weights
            x = x + (self._experts(f"{own}mlp.", h) if routed else self._mlp(f"{own}mlp.", h))
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        return self._linear(head, self._norm("model.norm", x))

    def _mlp(self, own: str, x: Array) -> Array:
        gate, up = (self._linear(f"{own}{n}_proj", x) for n in ("gate", "up"))
        return self._linear(f"{own}down_proj", reference.gated("silu", gate, up))

    def _experts(self, own: str, x: Array) -> Array:
        """Sum over each token's experts, ascending; then the one that all share, if there is."""
        chances, used = (
            reference.softmax(self._linear(f"{own}gate", x)),
            self.config["num_experts_per_tok"],
        )
        ids = np.argsort(-chances, axis=-1, kind="stable")[:, :used]
        weights = np.take_along_axis(chances, ids, -1)
        if self.config.get("norm_topk_prob", True):
            total = weights[:, :1]
            for i in range(1, used):
                total = total + weights[:, i : i + 1]
            weights = weights / total
        out = np.zeros_like(x)
        stacked = zip(
            *(self.weights[f"{own}experts.{n}"] for n in ("gate_up_proj", "down_proj")), strict=True
        )
        for expert, (both, down) in enumerate(stacked):
            rows, slots = np.nonzero(ids == expert)
            if not len(rows):
                continue
            gate, up = np.split(_linear(x[rows], both), 2, axis=-1)
            done = _linear(reference.gated("silu", gate, up), down)
            out[rows] = out[rows] + done * weights[rows, slots, None]
        if f"{own}shared_expert_gate.weight" in self.weights:
            share = reference.sigmoid(self._linear(f"{own}shared_expert_gate", x))
            out = out + share * self._mlp(f"{own}shared_expert.", x)
        return out

    def _norm(self, name: str, x: Array) -> Array:
        weight = self.weights[f"{name}.weight"]
        return reference.rms_norm(x, weight, self.config["rms_norm_eps"], "scale_rounded")

    def _linear(self, name: str, x: Array) -> Array:
        return _linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _rows(self, table: Any, ids: npt.NDArray[np.int64]) -> Array:
        return _by_kind(table, lambda t, i: t[i], reference_packed.rows)(table, ids)


def _weight(tensor: Any, kind: str | None) -> Any:
    if kind in BLOCK_FORMATS:
        return reference_packed.unpack(tensor.numpy(), kind)
    return tensor.float().numpy()


def _linear(x: Array, weight: Any, bias: Array | None = None) -> Array:
    return _by_kind(weight, reference.linear, reference_packed.linear)(x, weight, bias)


def _by_kind(weight: Any, plain: Callable[..., Array], blocks: Callable[..., Array]) -> Any:
    return blocks if isinstance(weight, reference_packed.Blocks) else plain
