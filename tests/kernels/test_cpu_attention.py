"""The compiled paged attention: the reference's bits however sequences are cut and paged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from kernel_inputs import Tokens, numbers, sequence

from detinfer import ops
from detinfer.kernels import reference
from detinfer.testing import (
    assert_same_bits,
    run,
    same_bits,
    thread_count,
    to_torch,
)

F32 = np.float32
PAGE = 64
SCALE = 0.37
kept = "float32"  # what pages hold, and the reference's


@pytest.fixture(autouse=True, params=["float32", "bfloat16"])
def pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with both."""
    monkeypatch.setitem(globals(), "kept", request.param)


class World:
    """A page pool full of NaN, whose pages sequences get in shuffled order."""

    def __init__(self, sequences: Sequence[Tokens], dtype: str = "float32", spare: int = 3):
        self.dtype = dtype
        kv_heads, k_dim = sequences[0].k.shape[1:]
        spec = ops.LayerCacheSpec(kv_heads, k_dim, sequences[0].v.shape[2])
        needed = [-(-len(s) // PAGE) for s in sequences]
        pages = sum(needed) + spare
        dtypes = getattr(torch, dtype), getattr(torch, kept)
        self.cache = ops.KVCache([spec, spec], pages, *dtypes)
        for pool in numbers(self.cache):
            pool.fill_(np.nan)
        order = np.random.default_rng(pages).permutation(np.arange(1, pages)).tolist()
        for s, count in zip(sequences, needed, strict=True):
            s.pages, order = order[:count], order[count:]

    def step(self, parts: Iterable[tuple[Tokens, int, int]], **options: Any) -> list[Any]:
        """One batch: of each sequence its tokens start..stop. Results part by part."""
        parts = list(parts)
        counts = [stop - start for _, start, stop in parts]
        tables = np.zeros((len(parts), max(len(s.pages) for s, _, _ in parts) + 1), np.int32)
        for row, (s, _, _) in zip(tables, parts, strict=True):
            row[: len(s.pages)] = s.pages
        batch = ops.BatchTensors(
            np.concatenate([np.arange(start, stop) for _, start, stop in parts]).astype(np.int32),
            np.cumsum([0, *counts]).astype(np.int32),
            tables,
        )
        q, k, v = (
            to_torch(
                np.concatenate([getattr(s, name)[start:stop] for s, start, stop in parts]),
                self.dtype,
            )
            for name in "qkv"
        )
        options = {"scale": SCALE, **options}
        return list(run(ops.attention, q, k, v, self.cache, 1, batch, **options).split(counts))


def chunked(s: Tokens, size: int, world: World | None = None, **options: Any) -> torch.Tensor:
    """The whole sequence in chunks of a size, each a step of its own."""
    world = world or World([s])
    starts = range(0, len(s), size)
    return torch.cat([world.step([(s, a, min(a + size, len(s)))], **options)[0] for a in starts])


def expected(s: Tokens, positions: Any = None, **options: Any) -> np.ndarray:
    """The reference's rows at some positions, or all."""
    positions = np.arange(len(s)) if positions is None else np.asarray(positions)
    options = {"scale": SCALE, "cache_dtype": kept, **options}
    return reference.attention(s.q[positions], positions, s.k, s.v, **options)


def edges(length: int) -> list[int]:
    """Positions around every block and segment edge below a length."""
    near = {0, 1, length - 1}
    for edge in (64, 128, 192, 512, 1024):
        near |= {edge - 1, edge, edge + 1}
    return sorted(p for p in near if p < length)


def test_every_chunk_size_gives_the_reference():
    s = sequence(200)
    whole = expected(s)
    for size in (*range(1, 131), 200):
        assert_same_bits(chunked(s, size), whole, f"chunks of {size}")


@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 25, 32])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_every_group_of_query_heads(group, kv_heads):
    s = sequence(130, heads=(group * kv_heads, kv_heads), dims=(16, 16))
    rows = edges(130)
    whole = expected(s, rows)
    for size in (1, 9, 65, 130):
        assert_same_bits(chunked(s, size)[rows], whole, f"chunks of {size}")


@pytest.mark.parametrize(
    "dims",
    [(1, 8), (8, 1), (16, 63), (63, 16), (64, 64), (64, 80), (80, 96), (96, 128), (128, 64),
     (256, 128), (128, 256), (192, 128)],
)  # fmt: skip
def test_every_head_dimension_with_keys_unlike_values(dims):
    s = sequence(70, heads=(4, 2), dims=dims)
    rows = edges(70)
    whole = expected(s, rows)
    for size in (1, 13, 70):
        assert_same_bits(chunked(s, size)[rows], whole, f"chunks of {size}")


@pytest.mark.parametrize("length", [511, 512, 513, 1025])
def test_sequences_across_segment_edges(length):
    s = sequence(length)
    rows = edges(length)
    whole = expected(s, rows)
    for size in (length, 300, 64):
        world = World([s])
        assert_same_bits(chunked(s, size, world)[rows], whole, f"chunks of {size}")
        again = world.step([(s, length - 1, length)])[0]
        assert_same_bits(again, whole[-1:], "the last token decoded")


OPTIONS = {
    **{f"window{w}": {"window": w} for w in (1, 2, 63, 64, 65, 100, 1000)},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": np.array([0.5, -2.0], F32)},
    "all": {"window": 65, "softcap": 3.0, "sinks": np.array([9.0, 0.0], F32)},
}


@pytest.mark.parametrize("window", [0, 1700])
def test_tokens_decoded_thousands_of_keys_in(window):
    s = sequence(4225, heads=(1, 1), dims=(8, 8))
    rows = [1023, 1024, 1535, 1536, 1537, 1600, 2047, 2048, 2100, 3000, 4096, 4200, 4224]
    world = World([s])
    whole = chunked(s, 845, world, window=window)
    decoded = [world.step([(s, row, row + 1)], window=window)[0] for row in rows]
    assert_same_bits(torch.cat(decoded), expected(s, rows, window=window))
    assert_same_bits(whole[rows], expected(s, rows, window=window))


@pytest.mark.parametrize("name", OPTIONS)
def test_windows_softcaps_and_sinks(name):
    options = OPTIONS[name]
    tensors = {k: torch.from_numpy(v) if k == "sinks" else v for k, v in options.items()}
    s = sequence(200)
    whole = expected(s, **options)
    for size in (1, 7, 64, 65, 200):
        assert_same_bits(chunked(s, size, **tensors), whole, f"chunks of {size}")
    if name not in ("window1000",):
        assert not same_bits(whole, expected(s))


@pytest.mark.parametrize("window", [100, 500, 512, 600])
def test_windows_across_segment_edges(window):
    s = sequence(1100)
    rows = sorted({*edges(1100), 575, 576, 577, 611, 612, 1023, 1024, 1087})
    whole = expected(s, rows, window=window)
    for size in (1100, 333):
        assert_same_bits(chunked(s, size, window=window)[rows], whole, f"chunks of {size}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_activations_round_once(dtype):
    s = sequence(130, dtype=dtype)
    whole = expected(s, dtype=dtype)
    for size in (1, 50, 130):
        world = World([s], dtype)
        got = chunked(s, size, world)
        assert got.dtype == getattr(torch, dtype)
        assert_same_bits(got.float(), whole, f"chunks of {size}")


def test_neighbours_of_every_length_change_nothing():
    """Another engine picked its tile from the longest query of the batch."""
    fixed = sequence(140, seed=1)
    whole = expected(fixed)
    for length in range(1, 131):
        neighbour = sequence(length, seed=2)
        world = World([fixed, neighbour])
        world.step([(fixed, 0, 129)])
        parts = [(fixed, 129, 130), (neighbour, 0, length)]
        got = world.step(parts if length % 2 else parts[::-1])[0 if length % 2 else 1]
        assert_same_bits(got, whole[129:130], f"decode beside {length}")
        got = world.step([(neighbour, length - 1, length), (fixed, 130, 140)])[1]
        assert_same_bits(got, whole[130:], f"chunk beside {length}")


def test_many_short_neighbours_change_nothing():
    """Another engine picked its tile from the summed query length."""
    fixed = sequence(100, seed=1)
    neighbours = [sequence(1 + i % 5, seed=3 + i) for i in range(40)]
    world = World([fixed, *neighbours])
    parts = [(n, 0, len(n)) for n in neighbours]
    results = world.step([*parts[:17], (fixed, 0, 100), *parts[17:]])
    assert_same_bits(results[17], expected(fixed))
    for got, n in zip(results[:17] + results[18:], neighbours, strict=True):
        assert_same_bits(got, expected(n))


def test_order_of_the_batch_changes_nothing():
    sequences = [sequence(n, seed=n) for n in (1, 64, 65, 3, 130, 520)]
    world = World(sequences)
    forward = world.step([(s, 0, len(s)) for s in sequences])
    backward = world.step([(s, 0, len(s)) for s in sequences[::-1]])[::-1]
    for s, one, two in zip(sequences, forward, backward, strict=True):
        assert_same_bits(one, two, f"{len(s)} tokens")


def test_threads_do_not_change_bits():
    sequences = [sequence(n, seed=n, heads=(4, 2)) for n in (600, 1, 70, 129)]
    results = []
    for threads in (1, 2):
        with thread_count(threads):
            results.append(World(sequences).step([(s, 0, len(s)) for s in sequences]))
    for one, two in zip(*results, strict=True):
        assert_same_bits(one, two)


@pytest.mark.parametrize("bad", [1e4, np.nan, np.inf])
def test_a_neighbour_with_huge_or_broken_activations_changes_nothing(bad):
    fixed, loud = sequence(100, seed=1), sequence(80, seed=2)
    for name in "qkv":
        setattr(loud, name, getattr(loud, name) * F32(bad))
    world = World([fixed, loud])
    got = world.step([(loud, 0, 80), (fixed, 0, 100)])[1]
    assert_same_bits(got, expected(fixed))
    assert_same_bits(world.step([(loud, 79, 80), (fixed, 99, 100)])[1], expected(fixed, [99]))


@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_token_reaches_no_earlier_token(name, bad):
    s = sequence(140)
    clean = expected(s)
    getattr(s, name)[70] = bad
    for size in (140, 1, 33):
        got = chunked(s, size)
        assert_same_bits(got[:70], clean[:70], f"chunks of {size}")
        assert_same_bits(got, expected(s), f"chunks of {size}")
    assert not same_bits(got[70:], clean[70:])


def test_a_windowed_query_does_not_see_a_broken_token_it_left_behind():
    s = sequence(200)
    clean = expected(s, window=30)
    s.k[70], s.v[70] = np.nan, np.inf
    got = chunked(s, 200, window=30)
    assert_same_bits(got[100:], clean[100:])
    assert_same_bits(chunked(s, 1, window=30)[100:], clean[100:])


@pytest.mark.parametrize("stale", [np.nan, np.inf, 1e38, -1e38, 0.0])
def test_stale_pages_and_slots_are_never_read(stale):
    s = sequence(100)
    world = World([s])
    for pool in numbers(world.cache):
        pool.fill_(stale)
    assert_same_bits(chunked(s, 37, world), expected(s))


def test_pages_taken_over_from_a_finished_sequence():
    first, second = sequence(190, seed=1), sequence(130, seed=2)
    world = World([first])
    chunked(first, 190, world)
    second.pages = first.pages[::-1]
    assert_same_bits(chunked(second, 50, world), expected(second))


def test_pages_shared_by_a_common_prefix():
    """A warm prefix gives the bits of a cold one."""
    cold = sequence(150)
    world = World([cold])
    chunked(cold, 150, world)
    for shared in (64, 128):
        warm = Tokens(cold.q, cold.k, cold.v, [*cold.pages[: shared // PAGE]])
        taken = set(cold.pages)
        warm.pages += [p for p in range(1, world.cache.num_pages) if p not in taken]
        got = world.step([(warm, shared, 150)])[0]
        assert_same_bits(got, expected(cold)[shared:], f"{shared} tokens shared")


def test_other_layers_and_pages_are_left_alone():
    s = sequence(100)
    world = World([s])
    chunked(s, 100, world)
    other_keys, keys, other_values, values = numbers(world.cache)
    assert other_keys.isnan().all()
    assert other_values.isnan().all()
    unused = [p for p in range(world.cache.num_pages) if p not in s.pages]
    assert keys[unused].isnan().all()
    assert values[unused].isnan().all()


def test_the_cache_gives_back_what_attention_wrote():
    s = sequence(100, heads=(4, 2))
    world = World([s])
    chunked(s, 33, world)
    k, v = world.cache.gather(1, np.array(s.pages, np.int32), 100)
    assert_same_bits(k, reference.cached(s.k, kept).transpose(1, 0, 2))
    assert_same_bits(v, reference.cached(s.v, kept).transpose(1, 0, 2))


def test_extreme_scores():
    s = sequence(140)
    s.q[:70] *= F32(1e3)  # one key takes everything: exp underflows to +0
    s.q[70:80] = 0.0  # all scores equal
    s.k[100] *= F32(-1e3)
    s.v[5] = F32(1e-42)  # subnormal values
    s.q[80:90] *= F32(1e-38)
    for size in (140, 1):
        assert_same_bits(chunked(s, size), expected(s), f"chunks of {size}")


# A key of +Inf score makes its row NaN, one of -Inf (masked by a model) takes no weight; pages of
# bfloat16 have NaN for both.
def test_infinite_scores():
    s = sequence(70)
    s.q[:] = abs(s.q)
    s.k[:] = abs(s.k)
    s.k[3] = -np.inf
    assert np.isfinite(expected(s)[4:]).all() == (kept == "float32")
    s.k[60] = np.inf
    assert np.isnan(expected(s)[60:]).all()
    for size in (70, 1):
        assert_same_bits(chunked(s, size), expected(s), f"chunks of {size}")


# Negative controls: what this file compares must tell other orders of the same sums apart.


@pytest.mark.parametrize("name", ["BLOCK", "SEGMENT"])
def test_blocks_that_follow_the_chunk_fail_the_same_comparison(monkeypatch, name):
    s = sequence(1025)
    got = chunked(s, 1025)[[1024]]
    assert_same_bits(got, expected(s, [1024]))
    monkeypatch.setattr(reference, name, {"BLOCK": 32, "SEGMENT": 1024}[name])
    assert not same_bits(got, expected(s, [1024]))


def test_the_other_pages_fail_the_same_comparison():
    s = sequence(130)
    other = {"float32": "bfloat16", "bfloat16": "float32"}[kept]
    got = chunked(s, 130)
    assert_same_bits(got, expected(s))
    assert not same_bits(got, expected(s, cache_dtype=other))


def test_torch_attention_fails_the_same_comparison():
    s = sequence(130, heads=(1, 1), dims=(16, 16))
    q, k, v = (torch.from_numpy(a).transpose(0, 1)[None] for a in (s.q, s.k, s.v))
    stock = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE)
    assert not same_bits(stock[0].transpose(0, 1), expected(s))


def test_shapes_that_do_not_fit_are_refused():
    s = sequence(5, heads=(4, 2))
    world = World([s])
    with pytest.raises(ValueError, match=r"v: got shape \(5, 2, 7\), expected \(5, 2, 8\)"):
        world.step([(Tokens(s.q, s.k, s.v[..., :7], s.pages), 0, 5)])
    with pytest.raises(ValueError, match="q: got 3 heads, expected a multiple of 2"):
        world.step([(Tokens(s.q[:, :3], s.k, s.v, s.pages), 0, 5)])
