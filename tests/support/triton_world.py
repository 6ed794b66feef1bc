"""Paged attention by Triton's interpreter, over pages of stale values, and what it has to be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import kernel_inputs
import numpy as np
import torch
from kernel_inputs import Tokens

from benchmarks.interpreter import install
from detinfer.testing import assert_same_bits, to_torch

install()


from detinfer.kernels import reference_native  # noqa: E402
from detinfer.kernels.triton.attention import (  # noqa: E402
    AttentionConfig,
    AttentionConfigs,
    DeviceWorkList,
    attention,
)
from detinfer.kernels.triton.attention_work import (  # noqa: E402
    BLOCK,
    WorkList,
    work_list,
)

PAGE = BLOCK
SCALE = 0.37
DTYPES = ("bfloat16", "float16", "float32")
NAN = float("nan")


def configs(
    prefill: int = 64, decode: int = 16, whole: bool = True, prefill_from: int = 32
) -> AttentionConfigs:
    """Launch configurations by what the host sees of them: tile rows, how tiles are walked."""
    tiles = AttentionConfig(prefill, 4, 2, 2), AttentionConfig(decode, 4, 2, 2)
    return AttentionConfigs(tiles[0], tiles[1], whole, prefill_from)


DEFAULT = configs()

Part = tuple[Tokens, int, int]  # a sequence, and which of its tokens a batch holds
sequence = functools.partial(kernel_inputs.sequence, dims=(16, 16), dtype="bfloat16")


class World:
    """A page pool full of ``stale`` values, whose pages sequences get in shuffled order."""

    def __init__(
        self,
        sequences: Sequence[Tokens],
        dtype: str = "bfloat16",
        stale: float = NAN,
        seed: int = 0,
    ):
        self.dtype = dtype
        needed = [-(-len(s) // PAGE) for s in sequences]
        pages = sum(needed) + 3
        order = np.random.default_rng((seed, pages)).permutation(pages).tolist()
        kv_heads = sequences[0].k.shape[1]
        self.k, self.v = (
            torch.full((pages, kv_heads, PAGE, x.shape[2]), stale, dtype=getattr(torch, dtype))
            for x in (sequences[0].k, sequences[0].v)
        )
        for s, count in zip(sequences, needed, strict=True):
            s.pages, order = order[:count], order[count:]
            for cache, values in ((self.k, s.k), (self.v, s.v)):
                for number, page in enumerate(s.pages):
                    kept = values[number * PAGE : (number + 1) * PAGE]
                    cache[page, :, : len(kept)] = to_torch(kept, dtype).transpose(0, 1)

    def step(
        self,
        parts: Sequence[Part],
        config: AttentionConfigs = DEFAULT,
        cut: Callable[[WorkList], WorkList] = lambda p: p,
        **options: Any,
    ) -> list[torch.Tensor]:
        """One batch: of each sequence its tokens start..stop. Results part by part."""
        counts = [stop - start for _, start, stop in parts]
        tables = torch.zeros(len(parts), max(len(s.pages) for s, _, _ in parts), dtype=torch.int32)
        for row, (s, _, _) in zip(tables, parts, strict=True):
            row[: len(s.pages)] = torch.tensor(s.pages)
        heads, kv_heads = parts[0][0].q.shape[1], self.k.shape[1]
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        first = np.array([start for _, start, _ in parts], np.int32)
        window = options.get("window", 0)
        group = heads // kv_heads
        work = cut(work_list(starts, first, group, config.tiling(group), window))
        q = to_torch(np.concatenate([s.q[start:stop] for s, start, stop in parts]), self.dtype)
        on_device = DeviceWorkList(torch.from_numpy(work.pack()), work.layout)
        options = {"scale": SCALE, "config": config, **options}
        out = attention(q, self.k, self.v, tables, on_device, **options)
        return list(out.split(counts))


def expected(part: Part, dtype: str = "bfloat16", **options: Any) -> np.ndarray:
    s, start, stop = part
    positions = np.arange(start, stop)
    q, options = s.q[start:stop], {"scale": SCALE, **options}
    return reference_native.attention(q, positions, s.k, s.v, dtype=dtype, **options)


def assert_equals_reference(
    parts: Sequence[Part],
    dtype: str = "bfloat16",
    config: AttentionConfigs = DEFAULT,
    **options: Any,
) -> None:
    world = World([s for s, _, _ in parts], dtype)
    device = dict(options)
    if "sinks" in device:
        device["sinks"] = to_torch(device["sinks"], dtype)
    for part, got in zip(parts, world.step(parts, config, **device), strict=True):
        assert_same_bits(got.float(), expected(part, dtype, **options), f"{part[1]}..{part[2]}")
