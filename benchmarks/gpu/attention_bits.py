"""Attention on the device: prompt, chunks and decoded rows, wherever pages lie, give equal bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Result, section
from benchmarks.gpu.bits import Comparisons, differing
from benchmarks.gpu.paged import Paged
from benchmarks.gpu.sizes import Model
from detinfer.kernels import reference_native
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.triton.attention import AttentionConfig, AttentionConfigs, configs
from detinfer.kernels.triton.launch import architecture


def variants(arch: int, dim: int) -> tuple[AttentionConfigs, ...]:
    """Launch configurations beside the table's: tiles, warps, stages, programs, whole or split."""
    table = configs(arch, torch.bfloat16, dim, dim)
    prefills = (
        AttentionConfig(64, 4, 2, 2),
        AttentionConfig(64, 4, 3, 1),
        AttentionConfig(128, 8, 3, 1),
    )
    decodes = (
        AttentionConfig(16, 4, 2, 4),
        AttentionConfig(16, 4, 4, 2),
        AttentionConfig(64, 4, 3, 2),
    )
    return (
        *(replace(table, prefill=one) for one in prefills if one != table.prefill),
        *(replace(table, decode=one) for one in decodes if one != table.decode),
        replace(table, whole=not table.whole),
        replace(table, prefill_from=1),
    )


@section("bits.attention", seconds=40)
def attention_bits(bench: Bench) -> Result:
    """Every way to cut and place a sequence, and every launch configuration, per head shape."""
    shapes: dict[tuple[int, int, int], Model] = {}
    for model in bench.sizes.bits:
        shapes.setdefault((model.heads, model.kv_heads, model.head_dim), model)
    found = {}
    for shape, model in shapes.items():
        if bench.left() > 3:
            found[model.name] = _check_shape(bench, shape)
    return {
        "models": found,
        "passed": len(found) == len(shapes)
        and all(
            not one["unequal"]
            and not one["failed"]
            and one["error_of_budget"] <= 1
            and one["blocks_exchanged_differ"]
            for one in found.values()
        ),
    }


def _check_shape(bench: Bench, shape: tuple[int, int, int]) -> Result:
    length = bench.sizes.sequence
    one = Paged.random(bench.device, shape, [(0, length)])
    whole = one.run()
    found = Comparisons()

    def compare(what: str, launch: Callable[[], Tensor]) -> None:
        found.check(what, launch, whole)

    chunks, rows = _chunks(length, seed=1), [(i, 1) for i in range(length)]
    compare("chunks", lambda: one.cut(chunks).run())
    compare("short chunks", lambda: one.cut(_chunks(length, seed=2, longest=31)).run())
    compare("each row decoded", lambda: one.cut(rows).run())
    compare("chunks in another order", lambda: _reordered(one, chunks))
    compare("pages moved, stale ones NaN", lambda: _moved(one, float("nan")).run())
    compare("pages moved, stale ones huge", lambda: _moved(one, 3e38).run())
    for config in variants(architecture(bench.device), shape[2])[:: 5 if bench.smoke else 1]:
        compare(f"prompt, {config}", partial(one.run, config))
        compare(f"each row decoded, {config}", partial(one.cut(rows).run, config))
    return {
        "tokens": length,
        **found.result(),
        **_accuracy(bench, one, whole),
        "blocks_exchanged_differ": _blocks_exchanged(one, whole),
    }


def _chunks(length: int, seed: int, longest: int | None = None) -> list[tuple[int, int]]:
    """(keys before, rows) of random chunks that cover a sequence."""
    rng = np.random.default_rng(seed)
    cuts, position = [0], 0
    while position < length:
        position = min(length, position + int(rng.integers(1, (longest or length // 2) + 1)))
        cuts.append(position)
    return [(start, stop - start) for start, stop in pairwise(cuts)]


def _reordered(one: Paged, chunks: Sequence[tuple[int, int]]) -> Tensor:
    """Return the chunks as a batch in descending order, and their results put back."""
    out = one.cut(chunks[::-1]).run()
    return torch.cat(out.split([rows for _, rows in chunks[::-1]])[::-1])


def _moved(one: Paged, stale: float) -> Paged:
    """Return the same sequence on other pages of a larger pool, all else of which is ``stale``."""
    pages, length = one.keys.shape[0], sum(one.parts[0])
    order = torch.from_numpy(np.random.default_rng(3).permutation(pages + 5)[:pages])
    order = order.to(one.keys.device)

    def moved(cache: Tensor) -> Tensor:
        pool = cache.new_full((pages + 5, *cache.shape[1:]), stale)
        pool[order] = cache[one.tables[0].long()]
        if length % PAGE_SIZE:
            pool[order[-1], :, length % PAGE_SIZE :] = stale
        return pool

    return replace(
        one,
        keys=moved(one.keys),
        values=moved(one.values),
        tables=order.int()[None].contiguous(),
    )


def _accuracy(bench: Bench, one: Paged, whole: Tensor) -> dict[str, Any]:
    """Return the last rows against float64, and how often they are the bits of the NumPy model.

    Budget: each weight and the result are rounded to bfloat16 (2^-9 each) and the row sum is of
    unrounded weights: 2^-8 of the sum of |weight * value|, and a little for binary32's own sums.
    """
    length = sum(one.parts[0])
    rows = np.arange(length - bench.sizes.checked, length)
    q = one.q[rows].float().cpu().numpy()
    keys, values = (
        cache[one.tables[0].long()].transpose(1, 2).flatten(0, 1)[:length].float().cpu().numpy()
        for cache in (one.keys, one.values)
    )
    got = whole[rows].float().cpu()
    scale = one.q.shape[2] ** -0.5
    model = reference_native.attention(q, rows, keys, values, scale, dtype="bfloat16")
    k, v = (np.repeat(x.astype(np.float64), one.group, axis=1) for x in (keys, values))
    scores = np.einsum("thd,shd->hts", q.astype(np.float64), k) * scale
    scores[:, np.arange(length)[None, :] > rows[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    exact = np.einsum("hts,shd->thd", weights, v)
    size = np.einsum("hts,shd->thd", weights, np.abs(v))
    error = np.abs(got.numpy() - exact)
    return {
        "error_of_budget": float((error / (size * 2**-8 + 1e-4)).max()),
        "elements_unlike_the_model": differing(got, torch.from_numpy(model)),
        "elements_compared": got.numel(),
    }


def _blocks_exchanged(one: Paged, whole: Tensor) -> int:
    """Return the control: a last row that sees its first two full pages in the other order."""
    last = one.cut([(sum(one.parts[0]) - 1, 1)])
    tables = last.tables.clone()
    tables[:, :2] = tables[:, :2].flip(1)
    last = replace(last, tables=tables)
    return differing(last.run(), whole[-1:])
