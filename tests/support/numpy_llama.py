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
    """Llama, Qwen 2 or Qwen 3 as a converted folder has it; weights in blocks stay so.

    Args:
        folder: with config.json and model.safetensors.
        cos: of the rotary angles, by position. [positions, head_dim / 2]
        sin: likewise.
    """

    def __init__(self, folder: Path, cos: Array, sin: Array) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.cos, self.sin = cos, sin
        self.weights: dict[str, Any] = {}
        with safe_open(folder / "model.safetensors", "pt") as file:
            formats = file.metadata()
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if (kind := formats.get(name)) in BLOCK_FORMATS:
                    self.weights[name] = reference_packed.unpack(tensor.numpy(), kind)
                else:
                    self.weights[name] = tensor.float().numpy()

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
            o = reference.attention(q, positions, k, v, scale).reshape(len(ids), -1)
            x = x + self._linear(f"{own}self_attn.o_proj", o)
            h = self._norm(f"{own}post_attention_layernorm", x)
            gate, up = (self._linear(f"{own}mlp.{n}_proj", h) for n in ("gate", "up"))
            x = x + self._linear(f"{own}mlp.down_proj", reference.gated("silu", gate, up))
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        return self._linear(head, self._norm("model.norm", x))

    def _norm(self, name: str, x: Array) -> Array:
        weight = self.weights[f"{name}.weight"]
        return reference.rms_norm(x, weight, self.config["rms_norm_eps"], "scale_rounded")

    def _linear(self, name: str, x: Array) -> Array:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return _by_kind(weight, reference.linear, reference_packed.linear)(x, weight, bias)

    def _rows(self, table: Any, ids: npt.NDArray[np.int64]) -> Array:
        return _by_kind(table, lambda t, i: t[i], reference_packed.rows)(table, ids)


def _by_kind(weight: Any, plain: Callable[..., Array], blocks: Callable[..., Array]) -> Any:
    return blocks if isinstance(weight, reference_packed.Blocks) else plain
