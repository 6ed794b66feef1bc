"""Recognising the Llama pattern in a patched model, for the plans that run a step as one.

The pattern is matched by the modules found, never by the model's name; a runner then compares both
plans bit for bit on a small batch before it trusts the match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from detinfer.backends import LayerCacheSpec
from detinfer.models.attention import AttentionCall
from detinfer.models.leaves import LeafWeight
from detinfer.models.rope_table import RopeTable

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
class LinearPart:
    """Rows [start, start + n) of a packed weight, and their bias."""

    leaf: LeafWeight
    start: int
    n: int
    bias: Tensor | None


@dataclass(frozen=True)
class LayerPattern:
    """One decoder layer.

    Attributes:
        linears: q, k, v, o, gate, up and down.
        norms: by slot: input, post_attention, pre_mlp, post_mlp, q, k; those the layer has.
        rope: None for a layer without positions.
    """

    call: AttentionCall
    linears: tuple[LinearPart, ...]
    norms: dict[str, Any]
    rope: RopeTable | None


@dataclass(frozen=True)
class Pattern:
    """A model of the Llama pattern; what all its layers share stands here.

    Attributes:
        rotary: dimensions of a head that are rotated.
        wide_angles: whether cos and sin stay binary32 whatever the activation dtype.
        inner: width of the MLP.
        wide: whether q and k are normalised over all heads at once.
        gelu: gelu_tanh in the MLP rather than silu.
        residual: factor of what a layer adds to the residual stream.
        logit_factors: divisor, factor and softcap of the logits, applied in this order.
    """

    layers: tuple[LayerPattern, ...]
    embedding: LeafWeight
    head: LeafWeight
    final_norm: Any
    spec: LayerCacheSpec
    heads: int
    inner: int
    rotary: int
    wide_angles: bool
    variant: str
    eps: float
    wide: bool
    gelu: bool
    scale: float
    softcap: float
    embedding_factor: float
    residual: float
    logit_factors: tuple[float, float, float]


def match(model: Any, calls: Sequence[AttentionCall]) -> Pattern:
    """Return the pattern of a patched causal language model.

    Args:
        model: patched.
        calls: its attention calls recorded at load, one a layer.

    Raises:
        PatternMismatch: naming the module that does not fit.
    """
    inner: Any = getattr(model, "model", None)
    require(isinstance(inner, nn.Module), "no inner `model`")
    _children(inner, "model", {"embed_tokens", "layers", "norm", "rotary_emb"})
    _children(model, "the model", {"model", "lm_head"})
    require(model.lm_head.bias is None, "lm_head has a bias")
    by_layer = {call.layer: call for call in calls}
    require(len(by_layer) == len(inner.layers) == len(calls), "one attention call a layer")
    first = calls[0]
    require(all((c.scale, c.softcap) == (first.scale, first.softcap) for c in calls), "one scale")
    require(not any(c.sinks for c in calls), "attention sinks")
    spec = first.spec
    require(all(c.spec == spec for c in calls) and spec.k_dim == spec.v_dim, "one head shape")

    found = [_layer(layer, i, by_layer[i], inner) for i, layer in enumerate(inner.layers)]
    kinds = {kind for _, kind in found}
    require(len(kinds) == 1, "layers of several kinds")
    ((heads, width, variant, wide, gelu, eps, residual),) = kinds
    layers = tuple(layer for layer, _ in found)
    rotary = {2 * layer.rope.cos.shape[1] for layer in layers if layer.rope is not None}
    require(len(rotary) == 1, "rotary tables of several widths")
    require(_norm_kind(inner.norm) == (variant, eps), "model.norm is of another kind")
    return Pattern(
        layers=layers,
        embedding=inner.embed_tokens.leaf,
        head=model.lm_head.leaf,
        final_norm=inner.norm,
        spec=spec,
        heads=heads,
        inner=width,
        rotary=rotary.pop(),
        wide_angles=inner.rotary_emb.rope_keeps_float32,
        variant=variant,
        eps=eps,
        wide=wide,
        gelu=gelu,
        scale=first.scale,
        softcap=first.softcap,
        embedding_factor=_embedding_factor(inner),
        residual=residual,
        logit_factors=_logit_factors(model),
    )


def require(condition: bool, what: str) -> None:
    """Raise ``PatternMismatch`` unless ``condition`` holds."""
    if not condition:
        raise PatternMismatch(what)


def _layer(
    layer: Any, index: int, call: AttentionCall, inner: Any
) -> tuple[LayerPattern, tuple[Any, ...]]:
    """One decoder layer, and what all layers must share."""
    name = f"model.layers.{index}"
    require(hasattr(layer, "self_attn") and hasattr(layer, "mlp"), f"{name} has no mlp")
    attention, mlp = layer.self_attn, layer.mlp
    others = (n for n, m in layer.named_children() if not isinstance(m, nn.Dropout))
    names = tuple(sorted(n for n in others if n not in ("self_attn", "mlp")))
    require(names in _NORM_LAYOUTS, f"{name} has the children {names}")
    norms = {s: getattr(layer, n) for s, n in zip(_NORM_LAYOUTS[names], names, strict=True)}
    heads = attention.o_proj.in_features // call.spec.v_dim
    linears = (*_attention_linears(attention, name, heads, call.spec), *_mlp_linears(mlp, name))
    for slot in ("q", "k"):
        if getattr(attention, f"{slot}_norm", None) is not None:
            norms[slot] = getattr(attention, f"{slot}_norm")
    wide = "q" in norms and norms["q"].weight.numel() != call.spec.k_dim
    kinds = {_norm_kind(norm) for norm in norms.values()}
    require(len(kinds) == 1, f"{name} has norms of several kinds")
    ((variant, eps),) = kinds
    activations = [getattr(m, "activation_name", None) for m in mlp.children()]
    gelu = "gelu_tanh" in activations
    require(gelu or "silu" in activations, f"{name}.mlp has no silu or gelu_tanh")
    residual = float(getattr(layer, "residual_multiplier", 1.0))
    rope = _rope_table(inner, attention, call.layer)
    kind = (heads, linears[4].n, variant, wide, gelu, eps, residual)
    return LayerPattern(call, linears, norms, rope), kind


def _children(module: nn.Module, name: str, expected: set[str]) -> None:
    found = {n for n, _ in module.named_children()}
    require(found == expected, f"{name} has the children {sorted(found)}")


def _linear(module: Any, start: int = 0, n: int | None = None) -> LinearPart:
    """Return a linear module, or a slice of a joined one."""
    n = module.leaf.packed.n if n is None else n
    bias = None if module.bias is None else module.bias.detach()[start : start + n]
    return LinearPart(module.leaf, start, n, bias)


def _attention_linears(
    attention: Any, name: str, heads: int, spec: LayerCacheSpec
) -> list[LinearPart]:
    found = {n for n, _ in attention.named_children()} - {"q_norm", "k_norm"}
    q_width, kv_width = heads * spec.k_dim, spec.kv_heads * spec.k_dim
    if found == {"q_proj", "k_proj", "v_proj", "o_proj"}:
        return [_linear(getattr(attention, n)) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
    require(found == {"qkv_proj", "o_proj"}, f"{name}.self_attn has the children {sorted(found)}")
    joined = attention.qkv_proj
    starts = ((0, q_width), (q_width, kv_width), (q_width + kv_width, kv_width))
    return [*(_linear(joined, start, n) for start, n in starts), _linear(attention.o_proj)]


def _mlp_linears(mlp: Any, name: str) -> list[LinearPart]:
    found = {n for n, _ in mlp.named_children()}
    if {"gate_proj", "up_proj", "down_proj"} <= found:
        linears = [_linear(getattr(mlp, n)) for n in ("gate_proj", "up_proj", "down_proj")]
    else:
        require({"gate_up_proj", "down_proj"} <= found, f"{name}.mlp has {sorted(found)}")
        inner = mlp.gate_up_proj.out_features // 2
        gate, up = _linear(mlp.gate_up_proj, 0, inner), _linear(mlp.gate_up_proj, inner, inner)
        linears = [gate, up, _linear(mlp.down_proj)]
    require(linears[0].bias is None and linears[1].bias is None, f"{name}.mlp has gate biases")
    return linears


def _rope_table(inner: Any, attention: Any, layer: int) -> RopeTable | None:
    """Return the layer's cos and sin; None without positions (SmolLM3's every fourth layer)."""
    if not getattr(attention, "use_rope", True):
        return None
    rotary = inner.rotary_emb
    require(rotary.rope_layout == "halves", f"rotary layout {rotary.rope_layout}")
    tables: dict[str | None, RopeTable] = rotary.rope_tables
    key = None if None in tables else inner.config.layer_types[layer]
    return tables[key]


def _norm_kind(norm: Any) -> tuple[str, float]:
    variant = getattr(norm, "rms_variant", None)
    require(variant is not None, f"{type(norm).__name__} is no RMSNorm")
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return str(variant), float(eps)


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
