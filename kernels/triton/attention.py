"""Paged causal attention of ragged batches: prompt, chunk, decoded token (docs/arithmetic.md, N3).

Keys are kept as [pages, kv_heads, 64, k_dim], values as [pages, kv_heads, 64, v_dim]. The host cuts
a batch into items (attention_work.py) by tiles that suit the device (attention_table.py); one
kernel walks the items and another adds up what was split (attention_kernels.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detinfer.kernels.triton.arguments import (
    check_adjacent,
    check_dtype,
    check_float,
    check_shape,
    check_vector,
    output,
)
from detinfer.kernels.triton.attention_kernels import attend_kernel, merge_kernel
from detinfer.kernels.triton.attention_table import (
    MERGE_HEADS,
    MERGE_PROGRAMS,
    AttentionConfig,
    AttentionConfigs,
    configs,
    padded,
)
from detinfer.kernels.triton.attention_work import BLOCK as PAGE
from detinfer.kernels.triton.attention_work import HEADER, Layout, Tiling, padded_group
from detinfer.kernels.triton.launch import architecture, multiprocessors, options

__all__ = [
    "AttentionConfig",
    "AttentionConfigs",
    "DeviceWorkList",
    "Scratch",
    "attention",
    "configs",
    "scratch_for",
]

LOG2E = math.log2(math.e)
NO_WINDOW = 1 << 30  # more keys than a sequence has


@dataclass(frozen=True)
class DeviceWorkList:
    """A packed work list in device memory; its buffer may be filled again for another batch.

    Attributes:
        buffer: [layout.size] int32.
        layout: of the buffer.
    """

    buffer: Tensor
    layout: Layout


@dataclass(frozen=True)
class Scratch:
    """Partial results of split tiles.

    Attributes:
        o: weighted sums of values. [slots, heads, v_dim] float32
        ml: maximum and sum of weights. [slots, heads, 2] float32
    """

    o: Tensor
    ml: Tensor


def scratch_for(layout: Layout, heads: int, v_dim: int, device: torch.device) -> Scratch:
    """Memory for the partial results of any work list of a layout."""
    o = torch.empty(layout.slots, heads, v_dim, dtype=torch.float32, device=device)
    return Scratch(o, torch.empty(layout.slots, heads, 2, dtype=torch.float32, device=device))


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    work: DeviceWorkList,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    out: Tensor | None = None,
    scratch: Scratch | None = None,
    config: AttentionConfigs | None = None,
) -> Tensor:
    """Causal attention of a batch's query rows over their sequences' cached keys: N3.

    A row's result depends on its sequence alone: not on the batch, its order, how the sequence is
    cut into chunks, where its pages lie or what else they hold. Rows of T that the work does not
    name are not written.

    Args:
        q: rotated queries, last stride 1. [T, heads, k_dim]
        k_cache: keys, the batch's own among them. [pages, kv_heads, 64, k_dim], contiguous
        v_cache: values, likewise. [pages, kv_heads, 64, v_dim], contiguous
        block_tables: page ids of each sequence. [R, max pages] int32
        work: the batch's; its layout's tiling is ``configs(...).tiling(group)``.
        scale: of the scores.
        window: sliding window in keys, 0 for none.
        softcap: cap of the scores, 0 for none.
        sinks: attention sinks. [heads]
        out: written and returned instead of new memory, contiguous. [T, heads, v_dim]
        scratch: partial results, from ``scratch_for``; else allocated.
        config: another launch configuration, for tests.

    Returns:
        [T, heads, v_dim] in q's dtype.

    Raises:
        ValueError: on dtypes, shapes, strides or a work list that do not fit.
    """
    tokens, heads, k_dim = _check_shapes(q, k_cache, v_cache, block_tables, sinks)
    kv_heads, v_dim = v_cache.shape[1], v_cache.shape[3]
    group, layout = heads // kv_heads, work.layout
    chosen = config or configs(architecture(q.device), q.dtype, k_dim, v_dim)
    _check_work(work, chosen.tiling(group), group, window)
    if softcap < 0:
        raise ValueError(f"softcap: got {softcap}, expected 0 or more")
    out = output(out, q, (tokens, heads, v_dim), q.dtype)
    if scratch is None:
        scratch = scratch_for(layout, heads, v_dim, q.device)
    elif scratch.o.shape[0] < layout.slots or scratch.o.shape[1:] != (heads, v_dim):
        raise ValueError(
            f"scratch: got shape {tuple(scratch.o.shape)}, "
            f"expected ({layout.slots}, {heads}, {v_dim})"
        )
    if not tokens:
        return out
    sink = q if sinks is None else sinks
    sigma = (2 * scale / softcap if softcap else scale) * LOG2E
    for lists, count_at, items_at, items, whole in (
        (chosen.prefill, 0, HEADER, layout.prefill, chosen.whole),
        (chosen.decode, 1, layout.decode_at, layout.decode, False),
    ):
        if not items:
            continue
        programs = min(items * kv_heads, multiprocessors(q.device) * lists.programs)
        attend_kernel[(programs,)](
            q,
            k_cache,
            v_cache,
            block_tables,
            work.buffer,
            sink,
            out,
            scratch.o,
            scratch.ml,
            q.stride(0),
            q.stride(1),
            block_tables.stride(0),
            kv_heads,
            group,
            padded_group(group).bit_length() - 1,
            window or NO_WINDOW,
            sigma,
            softcap * LOG2E,
            items_at,
            count_at,
            k_dim,
            v_dim,
            padded(k_dim),
            padded(v_dim),
            max(lists.block_m, padded_group(group)),
            whole,
            bool(softcap),
            sinks is not None,
            num_warps=lists.warps,
            num_stages=lists.stages,
            **options(q.device),
        )
    if layout.merges:
        programs = layout.merges * -(-heads // MERGE_HEADS)
        merge_kernel[(min(programs, multiprocessors(q.device) * MERGE_PROGRAMS),)](
            work.buffer,
            sink,
            out,
            scratch.o,
            scratch.ml,
            heads,
            layout.merges_at,
            v_dim,
            padded(v_dim),
            MERGE_HEADS,
            sinks is not None,
            num_warps=1,
            **options(q.device),
        )
    return out


def _check_shapes(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, sinks: Tensor | None
) -> torch.Size:
    check_float("q", q)
    if q.dim() != 3:
        raise ValueError(f"q: got shape {tuple(q.shape)}, expected [T, heads, k_dim]")
    check_adjacent("q", q)
    if k_cache.dim() != 4 or v_cache.dim() != 4:
        name, cache = ("k_cache", k_cache) if k_cache.dim() != 4 else ("v_cache", v_cache)
        raise ValueError(
            f"{name}: got shape {tuple(cache.shape)}, expected [pages, kv_heads, {PAGE}, dim]"
        )
    pages, kv_heads = k_cache.shape[:2]
    for name, cache, dim in (
        ("k_cache", k_cache, q.shape[2]),
        ("v_cache", v_cache, v_cache.shape[3]),
    ):
        check_shape(name, cache, (pages, kv_heads, PAGE, dim))
        check_dtype(name, cache, q.dtype)
        if not cache.is_contiguous():
            raise ValueError(f"{name}: got strides {cache.stride()}, expected a contiguous tensor")
    if q.shape[1] % kv_heads:
        raise ValueError(f"q: got {q.shape[1]} heads, expected a multiple of {kv_heads}")
    check_dtype("block_tables", block_tables, torch.int32)
    if block_tables.dim() != 2:
        raise ValueError(
            f"block_tables: got shape {tuple(block_tables.shape)}, expected [R, pages]"
        )
    check_adjacent("block_tables", block_tables)
    check_vector("sinks", sinks, q.shape[1])
    return q.shape


def _check_work(work: DeviceWorkList, tiling: Tiling, group: int, window: int) -> None:
    if window < 0:
        raise ValueError(f"window: got {window}, expected 0 or more keys")
    layout = work.layout
    for name, got, expected in (
        ("tiling", layout.tiling, tiling),
        ("group", layout.group, group),
        ("window", layout.window, window),
    ):
        if got != expected:
            raise ValueError(f"work: got {name} {got}, expected {expected}")
    check_shape("work", work.buffer, (layout.size,))
    check_dtype("work", work.buffer, torch.int32)
