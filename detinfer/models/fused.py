"""Recognising the Llama pattern in a patched model, and running it as one compiled step.

The pattern is matched by the modules found, never by the model's name; the runner then compares
both plans bit for bit on a small batch before it trusts the match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from detinfer import ops
from detinfer.engine.batch import Batch
from detinfer.kernels.cpu import fused as kernel
from detinfer.kernels.cpu.jit import numba
from detinfer.kernels.cpu.matmul import PANEL, ZEROS
from detinfer.models.attention import AttentionCall
from detinfer.models.rope_table import RopeTable

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

# Decoder layer's norms -> the step's slots.
_NORM_LAYOUTS = {
    ("input_layernorm", "post_attention_layernorm"): ("input", "pre_mlp"),
    ("post_attention_layernorm", "post_feedforward_layernorm"): ("post_attention", "post_mlp"),
    (
        "input_layernorm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "pre_feedforward_layernorm",
    ): ("input", "post_attention", "post_mlp", "pre_mlp"),
}


class PatternMismatch(Exception):
    """Why a model is not the Llama pattern."""


@dataclass(frozen=True)
class _Linear:
    """Rows [start, start + n) of a packed weight, and their bias."""

    weight: ops.PackedWeight
    start: int
    n: int
    bias: Float32Array | None


class FusedStep:
    """The whole forward of a Llama-like model as one call.

    Args:
        model: a patched causal language model.
        calls: the attention calls recorded at load, one a layer.
        cache: the page pool.

    Raises:
        PatternMismatch: naming the module that does not fit.
    """

    def __init__(self, model: Any, calls: Sequence[AttentionCall], cache: ops.KVCache) -> None:
        self._keep: list[Any] = [cache]  # what the table's addresses point into
        self._rotary: set[int] = set()
        inner: Any = getattr(model, "model", None)
        _require(isinstance(inner, nn.Module), "no inner `model`")
        _children(inner, "model", {"embed_tokens", "layers", "norm", "rotary_emb"})
        _children(model, "the model", {"model", "lm_head"})
        embedding, head = inner.embed_tokens.leaf.packed, model.lm_head.leaf.packed
        _require(model.lm_head.bias is None, "lm_head has a bias")
        by_layer = {call.layer: call for call in calls}
        _require(len(by_layer) == len(inner.layers) == len(calls), "one attention call a layer")
        first = calls[0]
        _require(
            all((c.scale, c.softcap) == (first.scale, first.softcap) for c in calls), "one scale"
        )
        _require(not any(c.sinks for c in calls), "attention sinks")
        spec = first.spec
        _require(all(c.spec == spec for c in calls) and spec.k_dim == spec.v_dim, "one head shape")

        rows = [
            self._layer(layer, index, by_layer[index], cache, inner)
            for index, layer in enumerate(inner.layers)
        ]
        self.layers = np.array([row for row, _ in rows], np.int64)
        kinds = {kind for _, kind in rows}
        _require(len(kinds) == 1, "layers of several kinds")
        ((heads, n_inner, variant, wide, gelu, eps, residual),) = kinds
        _require(len(self._rotary) == 1, "rotary tables of several widths")
        (rotary,) = self._rotary
        _require(_norm_kind(inner.norm) == (variant, eps), "model.norm is of another kind")
        self.heads, self.kv_heads, self.vocab = heads, spec.kv_heads, int(head.n)
        self.dims = np.array(
            [embedding.k, heads, spec.kv_heads, spec.k_dim, rotary, n_inner, head.n, variant, wide,
             gelu, embedding.address, embedding.is_bf16, self._floats(inner.norm.weight),
             head.address, head.is_bf16],
            np.int64,
        )  # fmt: skip
        self._keep += [embedding, head]
        self.factors = np.array(
            [eps, first.scale, first.softcap, _embedding_factor(inner), residual,
             *_logit_factors(model)],
            np.float32,
        )  # fmt: skip
        self._widths = (embedding.k, embedding.k, heads * spec.k_dim, spec.kv_heads * spec.k_dim,
                        spec.kv_heads * spec.k_dim, heads * spec.k_dim, n_inner)  # fmt: skip
        self._scratch: list[Float32Array] = []

    def forward(
        self,
        ids: npt.NDArray[np.int32],
        batch: ops.BatchTensors,
        logit_rows: npt.NDArray[np.int32],
        out: Float32Array,
    ) -> None:
        """Run one step.

        Args:
            ids: token ids. [T]
            logit_rows: rows whose logits are wanted. [L]
            out: receives the logits. [L, vocab]
        """
        tokens = ids.size
        if not self._scratch or self._scratch[0].shape[0] < tokens:
            self._scratch = [np.empty((tokens, width), np.float32) for width in self._widths]
        kernel.step(
            numba.get_num_threads(),
            ids, batch.positions, batch.sequences, batch.block_tables,
            batch.plan(self.kv_heads, self.heads // self.kv_heads), logit_rows,
            self.layers, self.dims, self.factors, *self._scratch, ZEROS, out,
        )  # fmt: skip

    def _layer(
        self, layer: Any, index: int, call: AttentionCall, cache: ops.KVCache, inner: Any
    ) -> tuple[list[int], tuple[Any, ...]]:
        """The table's row of one decoder layer, and what all layers must share."""
        name = f"model.layers.{index}"
        _require(hasattr(layer, "self_attn") and hasattr(layer, "mlp"), f"{name} has no mlp")
        attention, mlp = layer.self_attn, layer.mlp
        others = (n for n, m in layer.named_children() if not isinstance(m, nn.Dropout))
        norms = tuple(sorted(n for n in others if n not in ("self_attn", "mlp")))
        _require(norms in _NORM_LAYOUTS, f"{name} has the children {norms}")
        slots = dict(zip(_NORM_LAYOUTS[norms], norms, strict=True))
        heads = attention.o_proj.in_features // call.spec.v_dim
        linears = [*_attention_linears(attention, name, heads, call.spec), *_mlp_linears(mlp, name)]
        q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        wide = q_norm is not None and q_norm.weight.numel() != call.spec.k_dim
        modules = {s: getattr(layer, n) for s, n in slots.items()} | {"q": q_norm, "k": k_norm}
        kinds = {_norm_kind(m) for m in modules.values() if m is not None}
        _require(len(kinds) == 1, f"{name} has norms of several kinds")
        ((variant, eps),) = kinds

        row: list[int] = []
        for linear in linears:
            row += [self._address(linear), linear.weight.is_bf16, self._floats(linear.bias)]
        for slot in kernel.NORMS:
            module = modules.get(slot)
            row.append(0 if module is None else self._floats(module.weight))
        table = _rope_table(inner, attention, call.layer)
        row.append(call.window)
        row += [0, 0] if table is None else [self._floats(table.cos), self._floats(table.sin)]
        row += [cache.keys[call.layer].ctypes.data, cache.values[call.layer].ctypes.data]
        activations = [getattr(m, "activation_name", None) for m in mlp.children()]
        gelu = "gelu_tanh" in activations
        _require(gelu or "silu" in activations, f"{name}.mlp has no silu or gelu_tanh")
        residual = float(getattr(layer, "residual_multiplier", 1.0))
        kind = (heads, linears[4].n, variant, wide, gelu, eps, residual)
        if table is not None:
            self._rotary.add(2 * table.cos.shape[1])
        return row, kind

    def _address(self, linear: _Linear) -> int:
        self._keep.append(linear.weight)
        item = 2 if linear.weight.is_bf16 else 4
        return linear.weight.address + linear.start * linear.weight.k * item

    def _floats(self, values: torch.Tensor | Float32Array | None) -> int:
        """Address of a binary32 copy that lives as long as the step; 0 for None."""
        if values is None:
            return 0
        if isinstance(values, torch.Tensor):
            values = values.detach().to(torch.float32).contiguous().numpy()
        self._keep.append(values)
        return values.ctypes.data


def plans_agree(modules: Callable[[Batch], Float32Array], fused: FusedStep) -> bool:
    """Whether both plans give the same logits, bit for bit, on a prompt and a chunk after it.

    Args:
        modules: logits of a batch by the model's own modules, on page 1 of the pool.
    """
    ids = (np.arange(24, dtype=np.int32) * 7919 + 1) % fused.vocab
    for start, stop in ((0, 20), (20, 24)):
        batch = Batch(
            input_ids=ids[start:stop],
            positions=np.arange(start, stop, dtype=np.int32),
            query_start=np.array([0, stop - start], np.int32),
            block_tables=np.ones((1, 1), np.int32),
            logit_rows=np.arange(stop - start, dtype=np.int32),
        )
        tensors = ops.BatchTensors(batch.positions, batch.query_start, batch.block_tables)
        expected = modules(batch)
        got = np.empty_like(expected)
        fused.forward(batch.input_ids, tensors, batch.logit_rows, got)
        if not np.array_equal(got.view(np.int32), expected.view(np.int32)):
            return False
    return True


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise PatternMismatch(what)


def _children(module: nn.Module, name: str, expected: set[str]) -> None:
    found = {n for n, _ in module.named_children()}
    _require(found == expected, f"{name} has the children {sorted(found)}")


def _linear(module: Any, start: int = 0, n: int | None = None) -> _Linear:
    """A linear module, or a slice of a joined one."""
    weight = module.leaf.packed
    n = weight.n if n is None else n
    _require(start % PANEL == 0, f"a joined weight is cut at row {start}")
    bias = None
    if module.bias is not None:
        bias = np.ascontiguousarray(module.bias.detach().float().numpy()[start : start + n])
    return _Linear(weight, start, n, bias)


def _attention_linears(
    attention: Any, name: str, heads: int, spec: ops.LayerCacheSpec
) -> list[_Linear]:
    found = {n for n, _ in attention.named_children()} - {"q_norm", "k_norm"}
    q_width, kv_width = heads * spec.k_dim, spec.kv_heads * spec.k_dim
    if found == {"q_proj", "k_proj", "v_proj", "o_proj"}:
        return [_linear(getattr(attention, n)) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
    _require(found == {"qkv_proj", "o_proj"}, f"{name}.self_attn has the children {sorted(found)}")
    joined = attention.qkv_proj
    starts = ((0, q_width), (q_width, kv_width), (q_width + kv_width, kv_width))
    return [*(_linear(joined, start, n) for start, n in starts), _linear(attention.o_proj)]


def _mlp_linears(mlp: Any, name: str) -> list[_Linear]:
    found = {n for n, _ in mlp.named_children()}
    if {"gate_proj", "up_proj", "down_proj"} <= found:
        linears = [_linear(getattr(mlp, n)) for n in ("gate_proj", "up_proj", "down_proj")]
    else:
        _require({"gate_up_proj", "down_proj"} <= found, f"{name}.mlp has {sorted(found)}")
        inner = mlp.gate_up_proj.out_features // 2
        gate, up = _linear(mlp.gate_up_proj, 0, inner), _linear(mlp.gate_up_proj, inner, inner)
        linears = [gate, up, _linear(mlp.down_proj)]
    _require(linears[0].bias is None and linears[1].bias is None, f"{name}.mlp has gate biases")
    return linears


def _rope_table(inner: Any, attention: Any, layer: int) -> RopeTable | None:
    """The layer's cos and sin; None for a layer without positions (SmolLM3's every fourth)."""
    if not getattr(attention, "use_rope", True):
        return None
    rotary = inner.rotary_emb
    _require(rotary.rope_layout == "halves", f"rotary layout {rotary.rope_layout}")
    tables: dict[str | None, RopeTable] = rotary.rope_tables
    key = None if None in tables else inner.config.layer_types[layer]
    return tables[key]


def _norm_kind(norm: Any) -> tuple[int, float]:
    variant = getattr(norm, "rms_variant", None)
    _require(variant is not None, f"{type(norm).__name__} is no RMSNorm")
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return ops.RMS_VARIANTS[str(variant)], float(eps)


def _embedding_factor(inner: Any) -> float:
    scale = getattr(inner.embed_tokens, "embed_scale", None)
    if scale is not None:
        return float(scale)
    return float(getattr(inner, "embedding_multiplier", 1.0))


def _logit_factors(model: Any) -> tuple[float, float, float]:
    """(divisor, factor, softcap) applied to the logits, in this order."""
    divisor = getattr(model.config, "logits_scaling", None) or 1.0
    factor = getattr(model.config, "logit_scale", None) or 1.0
    return float(divisor), float(factor), float(model.lm_head.softcap or 0.0)
