"""Triton's paged attention in the interpreter: the reference's bits however sequences are cut."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_inputs import Tokens

from benchmarks.interpreter import install
from detinfer.testing import assert_same_bits, same_bits

install()

import triton.language as tl  # noqa: E402
from triton_world import (  # noqa: E402
    DTYPES,
    NAN,
    SCALE,
    World,
    assert_equals_reference,
    configs,
    expected,
    sequence,
)

from detinfer.kernels.triton import attention as module  # noqa: E402
from detinfer.kernels.triton import attention_kernels  # noqa: E402
from detinfer.kernels.triton.attention import (  # noqa: E402
    AttentionConfig,
    AttentionConfigs,
)
from detinfer.kernels.triton.attention_work import (  # noqa: E402
    SEGMENT_BLOCKS,
    WorkList,
)


def cut_elsewhere(work: WorkList) -> WorkList:
    """Wrong work: of every split tile the second segment starts a block late."""
    decode = work.decode.copy()
    for item in decode:
        if item[6] >= 0 and item[5] == SEGMENT_BLOCKS:
            item[5] += 1
        elif item[4] == SEGMENT_BLOCKS:
            item[4] += 1
    return replace(work, decode=decode)


# --- values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "dims"),
    [((1, 1), (16, 16)), ((6, 2), (16, 32)), ((7, 1), (24, 16))],
    ids=["one head", "group of 3", "group of 7, padded depth"],
)
def test_equals_reference(dtype, heads, dims):
    make = functools.partial(sequence, heads=heads, dims=dims, dtype=dtype)
    a, b, c, d = make(70), make(66, seed=1), make(5), make(530)
    assert_equals_reference([(a, 0, 70), (b, 65, 66), (c, 0, 5), (d, 528, 530)], dtype)


@pytest.mark.parametrize("dims", [(80, 80), (192, 128), (256, 256)])
def test_equals_reference_at_model_head_dims(dims):
    s = sequence(66, heads=(2, 1), dims=dims)
    assert_equals_reference([(s, 60, 66)])


@pytest.mark.parametrize("heads", [(16, 1), (20, 1), (64, 1)])
def test_equals_reference_for_wide_groups(heads):
    s = sequence(66, heads=heads)
    assert_equals_reference([(s, 63, 66)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 3.0},
        {"sinks": np.array([0.5, -2], np.float32)},
        {"softcap": 5.0, "sinks": np.array([30, -30], np.float32), "window": 40},
    ],
    ids=["softcap", "sinks", "all"],
)
def test_equals_reference_with_options(dtype, options):
    a, b = sequence(75, dtype=dtype), sequence(520, dtype=dtype)
    assert_equals_reference([(a, 0, 75), (b, 519, 520)], dtype, **options)


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 129])
def test_window_edges_equal_reference(window):
    a, b = sequence(140), sequence(136, seed=1)
    assert_equals_reference([(a, 60, 140), (b, 128, 136)], window=window)


@pytest.mark.parametrize("window", [64, 450, 512, 513, 1000])
def test_window_edges_of_segments_equal_reference(window):
    s = sequence(1030)
    parts = [(s, 1023, 1026), (s, 511, 513)]
    world = World([s])
    for part, got in zip(parts, world.step(parts, window=window), strict=True):
        assert_same_bits(got.float(), expected(part, window=window))
    (whole,) = world.step([(s, 1020, 1030)], configs(prefill_from=1), window=window)
    assert_same_bits(whole.float(), expected((s, 1020, 1030), window=window))


@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy_against_float64(dtype):
    """Every step's relative error, in units of the accumulator's 2^-23, times its sum's size.

    A score's error of e moves its weight by a factor 2^e, so the result by at most
    2·max|v|·(2^e - 1). Scores: D products truncated one by one and one rounding, below
    (D + 2)·2^-23·sum|q·k·σ|. Weights and sums: below 100 more roundings on the path of a value. P's
    own rounding is relative, and so is the output's.
    """
    depth, length = 32, 600
    s = sequence(length, dims=(depth, 16), dtype=dtype)
    (got,) = World([s], dtype).step([(s, length - 3, length)])
    k, v = (np.repeat(x.astype(np.float64), 2, axis=1) for x in (s.k, s.v))
    q = s.q[-3:].astype(np.float64)
    scores = np.einsum("thd,shd->ths", q, k) * SCALE
    visible = np.arange(length) <= np.arange(length - 3, length)[:, None, None]
    weights = np.where(visible, np.exp(scores - scores.max(axis=2, keepdims=True)), 0)
    exact = np.einsum("ths,shd->thd", weights / weights.sum(axis=2, keepdims=True), v)
    size = np.abs(v).max()
    score_error = (depth + 2) * 2.0**-23 * np.einsum("thd,shd->ths", abs(q), abs(k)).max() * SCALE
    unit = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}[dtype]
    budget = 2 * size * (np.expm1(score_error) + 100 * 2.0**-23) + unit * size + unit * abs(exact)
    assert (abs(got.double().numpy() - exact) <= budget).all()


# --- invariance

CHUNKS = (1, 15, 16, 17, 63, 64, 65, 127, 128, 129)


@functools.cache
def prompt() -> tuple[World, Tokens, torch.Tensor]:
    s = sequence(130)
    world = World([s])
    return world, s, world.step([(s, 0, 130)])[0]


@pytest.mark.parametrize("size", CHUNKS)
def test_chunks_of_a_prompt_have_its_bits(size):
    """Size 1 is decoding it token by token. Chunks only read the cache, so one batch holds them."""
    world, s, whole = prompt()
    chunks = [(s, start, min(start + size, 130)) for start in range(0, 130, size)]
    assert_same_bits(torch.cat(world.step(chunks)), whole)


def test_control_merging_at_other_keys_changes_a_prompt(monkeypatch):
    world, s, whole = prompt()
    monkeypatch.setattr(attention_kernels, "SEGMENT", tl.constexpr(1))
    assert not same_bits(world.step([(s, 0, 130)])[0], whole)


@functools.cache
def long_sequence() -> tuple[World, Tokens]:
    s = sequence(580, heads=(3, 1))
    return World([s]), s


LONG = ((570, 580), (510, 514))


OTHERS = (
    configs(decode=32),
    configs(decode=64),
    configs(prefill=16, prefill_from=1),
    configs(prefill=64, prefill_from=1),
    configs(prefill=128, prefill_from=1),
    configs(prefill=32, prefill_from=1, whole=False),
)


@pytest.mark.parametrize("config", OTHERS, ids=repr)
@pytest.mark.parametrize("options", [{}, {"window": 100, "sinks": torch.ones(3)}], ids=repr)
def test_every_configuration_has_the_same_bits(config, options):
    world, s = long_sequence()
    parts = [(s, *rows) for rows in LONG]
    for a, b in zip(
        world.step(parts, config, **options), world.step(parts, **options), strict=True
    ):
        assert_same_bits(a, b)


def test_control_other_segments_change_the_bits():
    world, s = long_sequence()
    parts = [(s, *LONG[0])]
    assert not same_bits(world.step(parts, cut=cut_elsewhere)[0], world.step(parts)[0])


NEIGHBOURS = (1, 2, 15, 16, 17, 63, 64, 65, 100, 127, 128, 129, 130)


@functools.cache
def alone() -> tuple[Tokens, torch.Tensor]:
    s = sequence(600)
    return s, World([s]).step([(s, 596, 600)])[0]


@pytest.mark.parametrize("length", NEIGHBOURS)
def test_a_neighbour_of_any_length_changes_nothing(length):
    s, bits = alone()
    neighbour = sequence(length, seed=7, scale=1e4)
    world = World([neighbour, s], seed=length)
    assert_same_bits(world.step([(neighbour, 0, length), (s, 596, 600)])[1], bits)


def test_control_a_cut_that_follows_the_batch_is_seen():
    s, bits = alone()
    neighbour = sequence(64, seed=7)
    world = World([neighbour, s])

    def cut(work: WorkList) -> WorkList:
        return cut_elsewhere(work) if len(work.prefill) else work

    assert_same_bits(world.step([(s, 596, 600)], cut=cut)[0], bits)
    assert not same_bits(world.step([(neighbour, 0, 64), (s, 596, 600)], cut=cut)[1], bits)


def test_batch_order_changes_nothing():
    sequences = [sequence(n, seed=n) for n in (3, 40, 70, 520)]
    parts = [(s, max(0, len(s) - 40), len(s)) for s in sequences]
    world = World(sequences)
    results = world.step(parts)
    for order in ((3, 2, 1, 0), (1, 3, 0, 2)):
        for i, got in zip(order, world.step([parts[i] for i in order]), strict=True):
            assert_same_bits(got, results[i])
    assert not same_bits(results[2][:40], results[3][:40])  # the comparison sees a mix-up


@pytest.mark.parametrize("seed", [1, 2])
def test_page_placement_changes_nothing(seed):
    s, bits = alone()
    assert_same_bits(World([s], seed=seed).step([(s, 596, 600)])[0], bits)


def test_control_pages_in_another_order_are_seen():
    s, bits = alone()
    world = World([s])
    s.pages[:2] = s.pages[1::-1]
    assert not same_bits(world.step([(s, 596, 600)])[0], bits)


@pytest.mark.parametrize("stale", [NAN, float("inf"), -float("inf"), 3e4, 0.0])
@pytest.mark.parametrize("window", [0, 90])
def test_stale_pages_change_nothing(stale, window):
    """Keys beyond the sequence, and the pages a window has left behind."""
    s = sequence(300)
    parts = [(s, 297, 300), (s, 250, 290)]
    bits = World([s]).step(parts, window=window)
    world = World([s], stale=stale)
    if window:  # 250 - 90 + 1 = 161: the first visible key is in page 2
        world.k[s.pages[:2]], world.v[s.pages[:2]] = stale, stale
    for got, wanted in zip(world.step(parts, window=window), bits, strict=True):
        assert_same_bits(got, wanted)
    world.v[s.pages[3]] = 0.5  # the control: what is seen counts
    assert not same_bits(world.step(parts, window=window)[0], bits[0])


@pytest.mark.parametrize("count", [1, 3, 100])
def test_any_number_of_programs_has_the_same_bits(count, monkeypatch):
    sequences = [sequence(n, heads=(4, 2), seed=n) for n in (3, 40, 520)]
    parts = [(s, max(0, len(s) - 40), len(s)) for s in sequences]
    world = World(sequences)
    results = world.step(parts)
    monkeypatch.setattr(module, "multiprocessors", lambda device: count)
    one = AttentionConfig(64, 4, 2, 1)
    for got, wanted in zip(
        world.step(parts, AttentionConfigs(one, one, True)), results, strict=True
    ):
        assert_same_bits(got, wanted)


def test_control_too_few_programs_without_the_loop_are_seen(monkeypatch):
    """What a grid that leaves items out would look like: their rows are not written."""
    s = sequence(40)

    def first_item(work: WorkList) -> WorkList:
        return replace(work, prefill=work.prefill[:1])

    out = torch.full((40, 2, 16), NAN, dtype=torch.bfloat16)
    World([s]).step([(s, 0, 40)], cut=first_item, out=out)
    assert out.isnan().any()
    assert not out.isnan().all()


@pytest.mark.filterwarnings("ignore:All-NaN")  # the interpreter's maximum of a row of NaN
def test_rows_with_nan_or_infinity_are_kept_and_spread_to_none():
    s, t = sequence(70), sequence(70, seed=1)
    world = World([s, t])
    parts = [(s, 0, 70), (t, 66, 70)]
    clean = torch.cat(world.step(parts))
    s.q[3, 0, 5], s.q[9, 1, 0], t.q[67, 0, 0] = NAN, np.inf, NAN
    dirty = torch.cat(world.step(parts))
    for row, head in ((3, 0), (9, 1), (71, 0)):
        assert dirty[row, head].isnan().all()
        dirty[row, head] = clean[row, head]
    assert_same_bits(dirty, clean)


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_a_key_that_is_nan_reaches_only_the_rows_that_see_it():
    s, t = sequence(70), sequence(70, seed=1)
    world = World([s, t])
    parts = [(s, 0, 70), (t, 66, 70)]
    clean = world.step(parts)
    world.k[s.pages[0], 0, 40] = NAN
    dirty = world.step(parts)
    assert dirty[0][40:].isnan().all()
    assert_same_bits(dirty[0][:40], clean[0][:40])
    assert_same_bits(dirty[1], clean[1])
