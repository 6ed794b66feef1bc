"""The attention function Hugging Face models call: one adapter for every architecture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from detinfer import ops
from detinfer.errors import UnsupportedModelError
from detinfer.models.context import current

ATTN_IMPLEMENTATION = "detinfer"

# Arguments that change nothing here: positions are in the batch, masks and caches are ours.
_NEUTRAL = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "position_embeddings",
        "is_causal",
        "logits_to_keep",
    }
)


@dataclass(frozen=True)
class AttentionCall:
    """One layer's call of the attention function, as a recorder keeps it.

    Attributes:
        heads: query heads.
        spec: what the layer keeps of a token.
        window: sliding window in keys, 0 for none.
        softcap: of the scores, 0 for none.
        sinks: whether there are attention sinks.
    """

    layer: int
    heads: int
    spec: ops.LayerCacheSpec
    window: int
    scale: float
    softcap: float
    sinks: bool


_recorder: list[AttentionCall] | None = None


@contextmanager
def record_attention() -> Iterator[list[AttentionCall]]:
    """Collect the calls made inside the block (at load only; not for use from several threads)."""
    global _recorder
    calls: list[AttentionCall] = []
    _recorder = calls
    try:
        yield calls
    finally:
        _recorder = None


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention over the paged cache of the current step.

    Args:
        module: the attention module; its ``layer_idx`` names the layer of the cache.
        query: rotated. [1, H, T, Dk]
        key: rotated. [1, Hkv, T, Dk]
        value: [1, Hkv, T, Dv]
        attention_mask: None; no mask function is registered for this implementation.
        scaling: of the scores; None is 1 / sqrt(Dk).
        dropout: 0.
        sliding_window: keys with position > query position - window are visible.
        softcap: scores become ``softcap * tanh(score / softcap)``.
        s_aux: attention sinks. [H]
        **kwargs: refused, unless None or without effect here.

    Returns:
        [1, T, H, Dv] and no weights.

    Raises:
        UnsupportedModelError: an argument that would change the result and is not one of these.
    """
    context = current()
    layer = getattr(module, "layer_idx", None)
    if attention_mask is not None or dropout or not getattr(module, "is_causal", True):
        raise _refusal(module, "a mask, dropout or non-causal attention")
    if layer is None or query.shape[0] != 1 or kwargs.get("is_causal") is False:
        raise _refusal(module, "no layer_idx, a batch dimension above 1, or is_causal=False")
    if kwargs:
        for name, given in kwargs.items():
            if given is not None and name not in _NEUTRAL:
                raise _refusal(module, f"the argument {name}")

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    window = sliding_window or 0
    if _recorder is not None:
        spec = ops.LayerCacheSpec(k.shape[1], k.shape[2], v.shape[2])
        _recorder.append(
            AttentionCall(layer, q.shape[1], spec, window, scale, softcap or 0.0, s_aux is not None)
        )
    if context.cache is None or context.batch is None:  # probing shapes at load
        return q.new_zeros(1, q.shape[0], q.shape[1], v.shape[2]), None
    # The native cache has one kernel for both modes: no stock op reads pages.
    stock = not context.deterministic and isinstance(context.cache, ops.KVCache)
    attend = _stock_attention if stock else ops.attention
    out = attend(
        q,
        k,
        v,
        context.cache,
        layer,
        context.batch,
        scale=scale,
        window=window,
        softcap=softcap or 0.0,
        sinks=s_aux,
    )
    return out.unsqueeze(0), None


def _refusal(module: nn.Module, what: str) -> UnsupportedModelError:
    where = f"{type(module).__name__} of layer {getattr(module, 'layer_idx', '?')}"
    return UnsupportedModelError(f"{where}: attention was called with {what}")


def _stock_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Any,
    layer: int,
    batch: Any,
    *,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """Return the fast mode's attention: PyTorch's own, one sequence at a time."""
    cache.write(layer, k, v, batch)
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    for row in range(len(batch.query_start) - 1):
        start, stop = int(batch.query_start[row]), int(batch.query_start[row + 1])
        if start == stop:
            continue
        length = int(batch.positions[stop - 1]) + 1
        keys, values = cache.gather(layer, batch.block_tables[row], length)
        queries = q[start:stop].transpose(0, 1)
        mask = _visible(length, stop - start, window)
        if softcap or sinks is not None:
            attended = _eager(queries, keys, values, mask, scale, softcap, sinks)
        else:
            attended = F.scaled_dot_product_attention(
                queries.unsqueeze(0),
                keys.unsqueeze(0),
                values.unsqueeze(0),
                attn_mask=mask,
                scale=scale,
                enable_gqa=keys.shape[0] != queries.shape[0],
            )[0]
        out[start:stop] = attended.transpose(0, 1)
    return out


def _visible(length: int, rows: int, window: int) -> Tensor | None:
    """Which keys each of the last ``rows`` queries sees; None for all. [rows, length] bool."""
    if rows == 1 and not 0 < window < length:
        return None
    query = torch.arange(length - rows, length).unsqueeze(1)
    key = torch.arange(length).unsqueeze(0)
    visible = key <= query
    return visible & (key > query - window) if window else visible


def _eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """Return what scaled_dot_product_attention cannot do: softcap and sinks. [H, rows, Dv]."""
    groups = q.shape[0] // k.shape[0]
    k, v = (t.repeat_interleave(groups, dim=0) for t in (k, v))
    scores = (q @ k.transpose(1, 2)).float() * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks.float().reshape(-1, 1, 1).expand(-1, scores.shape[1], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return weights.to(v.dtype) @ v


AttentionInterface.register(ATTN_IMPLEMENTATION, attention_forward)
