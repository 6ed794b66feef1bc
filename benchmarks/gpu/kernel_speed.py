"""Attention against bandwidth and SDPA; the small kernels against bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.attention_bits import variants
from benchmarks.gpu.bench import Bench, Result, section
from benchmarks.gpu.device import Timer, copies_beyond_cache, normal, sdpa
from benchmarks.gpu.paged import Paged
from benchmarks.gpu.sizes import Model
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.triton import activation, embedding, logits, norms, rope
from detinfer.kernels.triton.attention import AttentionConfigs
from detinfer.kernels.triton.launch import architecture

BANDWIDTH_BOUND = 256 << 20  # bytes from which a decode step's attention is judged by bandwidth
_MOST_COPIES = 32


def _text(config: AttentionConfigs | None) -> str:
    if config is None:
        return "table"
    parts = [
        f"{name} {c.block_m} w{c.warps} s{c.stages} x{c.programs}"
        for name, c in (("prefill", config.prefill), ("decode", config.decode))
    ]
    return f"{', '.join(parts)}, whole={config.whole}, from {config.prefill_from}"


@section("perf.attention", seconds=50)
def attention_speed(bench: Bench) -> Result:
    """Decode against the copy's bandwidth, prefill against SDPA's flash kernel."""
    model = bench.sizes.large
    shape = (model.heads, model.kv_heads, model.head_dim)
    timer = Timer(bench.device)
    decode = [_decode(bench, timer, shape, *c) for c in bench.sizes.contexts if bench.left() > 5]
    prefill = [_prefill(bench, timer, shape, *p) for p in bench.sizes.prompts if bench.left() > 3]
    judged = [
        row["of_copy"] for row in decode if row["of_copy"] and row["bytes"] >= BANDWIDTH_BOUND
    ]
    return {
        "decode": decode,
        "prefill": prefill,
        "decode_of_copy": statistics.geometric_mean(judged) if judged else None,
        "prefill_ratio": statistics.geometric_mean([row["ratio"] for row in prefill]),
        "sdpa_kernels": bench.results.get("device", {}).get("sdpa_prefill_kernels"),
        "unmeasured": len(bench.sizes.contexts + bench.sizes.prompts) - len(decode + prefill),
    }


def _ours(paged: Paged, config: AttentionConfigs | None) -> Callable[[], Any]:
    work = paged.work(config)
    scratch, out = paged.scratch(work), torch.empty_like(paged.q)
    return partial(paged.run, config, work=work, scratch=scratch, out=out)


def _alternatives(bench: Bench, dim: int, kind: str) -> list[AttentionConfigs | None]:
    """Return the table's choice (None), and what differs from it in how ``kind`` is launched."""
    every = variants(architecture(bench.device), dim)
    others = every[:3] if kind == "prefill" else every[3:6]
    return [None, *others[: 1 if bench.smoke else None]]


def _decode(
    bench: Bench, timer: Timer, shape: tuple[int, int, int], sequences: int, keys: int
) -> dict[str, Any]:
    parts = [(keys - 1, 1)] * sequences
    size = 2 * shape[1] * shape[2] * 2 * keys * sequences
    count = min(copies_beyond_cache(size), 2 if bench.smoke else _MOST_COPIES)
    several = [Paged.random(bench.device, shape, parts, seed) for seed in range(count)]
    calls = {
        _text(config): [_ours(paged, config) for paged in several]
        for config in _alternatives(bench, shape[2], "decode")
    }
    heads, kv_heads, dim = shape
    q = normal(bench, sequences, heads, 1, dim)
    k, v = (normal(bench, sequences, kv_heads, keys, dim, seed=s) for s in (1, 2))
    calls["sdpa, contiguous"] = [partial(sdpa, q, k, v, causal=False)]
    seconds = timer.medians(calls, bench.sizes.repeats)
    rate, copy = size * 1e-9 / seconds["table"], bench.ceiling("copy_gb_s")
    return {
        "sequences": sequences,
        "keys": keys,
        "bytes": size,
        "us": seconds["table"] * 1e6,
        "gb_s": rate,
        "of_copy": rate / copy if copy else None,
        "candidates": _microseconds(seconds),
    }


def _prefill(
    bench: Bench, timer: Timer, shape: tuple[int, int, int], sequences: int, tokens: int
) -> dict[str, Any]:
    heads, kv_heads, dim = shape
    paged = Paged.random(bench.device, shape, [(0, tokens)] * sequences)
    calls = {
        _text(config): [_ours(paged, config)] for config in _alternatives(bench, dim, "prefill")
    }
    q = normal(bench, sequences, heads, tokens, dim)
    k, v = (normal(bench, sequences, kv_heads, tokens, dim, seed=s) for s in (1, 2))
    calls["sdpa"] = [partial(sdpa, q, k, v)]
    seconds = timer.medians(calls, bench.sizes.repeats)
    return {
        "sequences": sequences,
        "tokens": tokens,
        "us": seconds["table"] * 1e6,
        "sdpa_us": seconds["sdpa"] * 1e6,
        "ratio": seconds["sdpa"] / seconds["table"],
        "tflop_s": paged.flops * 1e-12 / seconds["table"],
        "candidates": _microseconds(seconds),
    }


def _microseconds(seconds: dict[str, float]) -> list[dict[str, Any]]:
    return [{"config": name, "us": s * 1e6} for name, s in seconds.items() if name != "table"]


@section("perf.small", seconds=20)
def small_speed(bench: Bench) -> Result:
    """Bandwidth of everything that only moves data, at the slowdown's model."""
    timer, rows, unmeasured = Timer(bench.device), [], []
    for count in bench.sizes.small_rows:
        if bench.left() < 2:
            unmeasured.append(count)
            continue
        for name, (size, launch) in _small_calls(bench, bench.sizes.large, count).items():
            copies = min(copies_beyond_cache(size), 2 if bench.smoke else _MOST_COPIES)
            seconds = timer.medians({name: [launch() for _ in range(copies)]}, bench.sizes.repeats)
            copy, rate = bench.ceiling("copy_gb_s"), size * 1e-9 / seconds[name]
            rows.append(
                {
                    "kernel": name,
                    "rows": count,
                    "us": seconds[name] * 1e6,
                    "gb_s": rate,
                    "of_copy": rate / copy if copy else None,
                }
            )
    return {"rows": rows, "unmeasured": unmeasured}


def _small_calls(
    bench: Bench, model: Model, count: int
) -> dict[str, tuple[int, Callable[[], Callable[[], Any]]]]:
    """Bytes each kernel must move, and what makes a call of it over data of its own."""
    hidden, inner, dim = model.hidden, model.inner, model.head_dim
    width = (model.heads + 2 * model.kv_heads) * dim
    weight = normal(bench, hidden)
    table = normal(bench, model.vocab, hidden)

    def norm() -> Callable[[], Any]:
        x, residual = normal(bench, count, hidden), normal(bench, count, hidden, seed=1)
        out = torch.empty_like(x)
        return lambda: norms.rms_norm(
            x, weight, model.eps, "scale_rounded", residual=residual, out=out
        )

    def gated() -> Callable[[], Any]:
        joined = normal(bench, count, 2 * inner)
        out = joined.new_empty(count, inner)
        return lambda: activation.silu_mul(joined[:, :inner], joined[:, inner:], out=out)

    def rotation() -> Callable[[], Any]:
        qkv = normal(bench, count, width)
        pages = -(-count // PAGE_SIZE)
        caches = [qkv.new_empty(pages, model.kv_heads, PAGE_SIZE, dim) for _ in "kv"]
        slots = torch.arange(count, dtype=torch.int32, device=bench.device)
        angles = [normal(bench, count, dim // 2, dtype=torch.float32, seed=s) for s in (1, 2)]
        out = qkv.new_empty(count, model.heads, dim)
        head = normal(bench, dim) if model.architecture == "qwen3" else None
        return lambda: rope.rotate_and_cache(
            qkv, slots, slots, *angles, *caches, heads=model.heads, kv_heads=model.kv_heads,
            q_norm=head, k_norm=head, eps=model.eps, out=out,
        )  # fmt: skip

    def lookup() -> Callable[[], Any]:
        ids = torch.randint(model.vocab, (count,), device=bench.device).int()
        out = table.new_empty(count, hidden)
        return lambda: embedding.embedding(ids, table, out=out)

    sampled = min(count, 256)

    def summary() -> Callable[[], Any]:
        x = normal(bench, sampled, model.vocab, dtype=torch.float32)
        return lambda: logits.summarise(x)

    return {
        "rms_norm, residual": (8 * count * hidden, norm),
        "silu_mul": (6 * count * inner, gated),
        "rotate_and_cache": (4 * count * width, rotation),
        "embedding": (4 * count * hidden, lookup),
        f"summarise {sampled} rows": (4 * sampled * model.vocab, summary),
    }
