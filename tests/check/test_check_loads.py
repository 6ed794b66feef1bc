"""What is drawn: from the seed alone, within bounds, with every count as promised."""

import dataclasses
import itertools
import json
from collections import Counter

import pytest

from detinfer.check import Bounds, Load, Row, Target, draw_loads
from detinfer.engine.outputs import EngineInfo
from detinfer.engine.validation import check_request
from detinfer.params import SamplingParams

BOUNDS = Bounds(
    vocab_size=97,
    longest=400,
    max_rows=32,
    allow_fast=True,
    max_num_seqs=64,
    max_num_batched_tokens=512,
)
GREEDY = SamplingParams(max_tokens=4)
TARGETS = [Target("ab", SamplingParams(max_tokens=8)), Target((1, 2), SamplingParams(max_tokens=4))]


def draw(runs=300, seed=1, bounds=BOUNDS, targets=TARGETS, **mode):
    return list(draw_loads(targets, runs, bounds, seed, **mode))


def rows_of(loads):
    return [row for load in loads for row in load.rows]


def test_loads_are_a_function_of_the_seed():
    assert draw(seed=3) == draw(seed=3)
    assert draw(seed=3) != draw(seed=4)


def test_a_longer_check_begins_with_the_same_sizes():
    short, long = draw(runs=200), draw(runs=400)
    assert [len(load.rows) for load in short[:-1]] == [len(x.rows) for x in long[: len(short) - 1]]


@pytest.mark.parametrize("runs", [1, 2, 17, 300])
@pytest.mark.parametrize("largest", [1, 2, 3, 32])
def test_every_target_runs_as_often_as_asked_and_fills_half_of_each_load(runs, largest):
    loads = draw(runs, bounds=dataclasses.replace(BOUNDS, max_rows=largest))
    assert Counter(row.target for row in rows_of(loads) if row.target is not None) == {
        0: runs,
        1: runs,
    }
    for number, load in enumerate(loads, start=1):
        assert load.number == number
        assert 1 <= len(load.rows) <= largest
        assert 2 * load.targets >= len(load.rows)
        assert [row.arrival for row in load.rows] == sorted(row.arrival for row in load.rows)


def test_the_first_load_is_the_largest_and_every_size_comes():
    sizes = [len(load.rows) for load in draw(runs=1000)]
    assert sizes[0] == 32
    assert set(sizes) == set(range(1, 33))
    # Small loads are slow: past the first of each size they are left out.
    assert min(sizes[32:-2]) > 16


def test_targets_keep_their_own_parameters():
    for row in rows_of(draw()):
        if row.target is not None:
            assert (row.prompt, row.params) == (
                TARGETS[row.target].prompt,
                TARGETS[row.target].params,
            )
            assert row.abort_after is None


def test_modes_draw_the_same_but_for_the_mode():
    def without_mode(loads):
        return [
            dataclasses.replace(row, params=dataclasses.replace(row.params, deterministic=True))
            for row in rows_of(loads)
        ]

    deterministic, fast = draw(), draw(deterministic=False)
    assert without_mode(deterministic) == without_mode(fast)
    assert [x.placement for x in deterministic] == [x.placement for x in fast]
    assert not any(row.params.deterministic for row in rows_of(fast))
    assert all(row.params.deterministic for row in rows_of(deterministic) if row.target is not None)
    # Some neighbours of deterministic runs are fast, unless the engine refuses such requests.
    assert not all(row.params.deterministic for row in rows_of(deterministic))
    strict = draw(bounds=dataclasses.replace(BOUNDS, allow_fast=False))
    assert all(row.params.deterministic for row in rows_of(strict))


def test_everything_that_may_vary_does():
    loads = draw(runs=1000)
    rows = rows_of(loads)
    neighbours = [row for row in rows if row.target is None and row.repeats is None]
    placements = [load.placement for load in loads]
    assert set(range(20)) <= {row.arrival for row in rows} <= set(range(21))
    lengths = {len(row.prompt) for row in neighbours}
    assert lengths >= set(range(1, 17))
    assert len(lengths) > 100
    assert max(len(row.prompt) for row in neighbours) > 300
    for name in ("temperature", "top_k", "top_p", "min_p", "logprobs", "ignore_eos", "min_tokens"):
        assert len({getattr(row.params, name) for row in neighbours}) > 1, name
    assert {row.abort_after for row in neighbours} == {None, *range(13)}
    assert min(x.max_num_batched_tokens for x in placements) < 32
    assert max(x.max_num_batched_tokens for x in placements) > 256
    assert len({x.max_chunk for x in placements}) > 40
    assert None in {x.max_chunk for x in placements}
    assert any(x.max_num_seqs < len(load.rows) for x, load in zip(placements, loads, strict=True))
    assert len({x.page_seed for x in placements}) == len(loads)
    places = [i for load in loads for i, row in enumerate(load.rows) if row.target is not None]
    assert set(places) == set(range(32))


@pytest.mark.parametrize(("longest", "seqs", "tokens"), [(2, 1, 1), (20, 4, 7), (5000, 64, 100)])
def test_every_neighbour_can_be_served(longest, seqs, tokens):
    bounds = dataclasses.replace(
        BOUNDS, longest=longest, max_num_seqs=seqs, max_num_batched_tokens=tokens
    )
    info = EngineInfo(
        model_name="",
        max_model_len=longest,
        vocab_size=bounds.vocab_size,
        hidden_size=8,
        eos_token_ids=(96,),
        num_pages=-(-longest // 64),
        max_num_seqs=seqs,
        allow_fast=True,
        plan="",
        dtype="",
        kv_cache_dtype="float32",
        profile="",
        fingerprint={},
        system_fingerprint="",
    )
    loads = draw(bounds=bounds)
    for row in rows_of(loads):
        if row.target is None and row.repeats is None:
            check_request(row.prompt, row.params, info)
    for load in loads:
        assert 1 <= load.placement.max_num_seqs <= seqs
        assert 1 <= load.placement.max_num_batched_tokens <= tokens


def test_limits_that_are_not_ours_are_not_drawn():
    loads = draw(bounds=dataclasses.replace(BOUNDS, max_num_seqs=None, max_num_batched_tokens=None))
    assert {load.placement for load in loads} == {None}


def test_alone_is_alone():
    load = Load.alone(1, TARGETS[1])
    assert (load.number, load.targets, len(load.rows), load.placement) == (0, 1, 1, None)


def test_descriptions_tell_everything_that_was_drawn():
    for load in itertools.islice(draw(), 5):
        told = json.loads(json.dumps(load.describe()))
        assert told["placement"] == dataclasses.asdict(load.placement)
        assert told["targets"] + told["neighbours"] == len(told["rows"]) == len(load.rows)
        for row, words in zip(load.rows, told["rows"], strict=True):
            assert words["arrival"] == row.arrival
            assert SamplingParams(**words["params"]) == row.params
            if row.repeats is not None:
                assert words["repeats"] == row.repeats
            elif row.target is None:
                assert words["prompt_tokens"] == len(row.prompt)
                assert words["abort_after"] == row.abort_after
            else:
                assert words["target"] == row.target


def test_fast_neighbours_come_on_top_of_every_load_and_stay():
    loads = draw(runs=40, fast_neighbours=8)
    assert Counter(row.target for row in rows_of(loads))[0] == 40
    for load in loads:
        fast = [row for row in load.rows if row.target is None and row.arrival == 0]
        fast = [row for row in fast if row.params.max_tokens == 8 and row.params.ignore_eos]
        assert sum(not row.params.deterministic and row.abort_after is None for row in fast) >= 8
        assert load.targets >= (len(load.rows) - 8) / 2


def test_a_fast_forerunner_has_the_first_steps_of_cold_loads_to_itself():
    loads = draw(runs=1000)
    found = [load for load in loads if any(row.repeats is not None for row in load.rows)]
    assert len(loads) / 8 < len(found) < len(loads) / 2
    for load in found:
        first, *others = load.rows
        target = TARGETS[first.repeats]
        assert load.placement.cold
        assert first == Row(
            target.prompt,
            dataclasses.replace(target.params, deterministic=False),
            repeats=first.repeats,
        )
        assert all(row.repeats is None for row in others)
        assert all(row.arrival > 0 for row in others)
    assert {load.rows[1].arrival for load in found} >= {1, 2, 3, 4}
    # The long one, of a page at least, has more to give away.
    long = [
        Target((1,) * 99, GREEDY),
        Target((1,), GREEDY),
        Target((2,) * 2000, GREEDY, share=0.05),
    ]
    rows = rows_of(draw(runs=1000, targets=long))
    repeats = Counter(row.repeats for row in rows if row.repeats is not None)
    assert repeats[0] > 20 * repeats[1]
    assert repeats[2] == 0
    strict = draw(bounds=dataclasses.replace(BOUNDS, allow_fast=False))
    assert {row.repeats for row in rows_of(strict)} == {None}


def test_a_server_gets_forerunners_too():
    bounds = dataclasses.replace(BOUNDS, max_num_seqs=None, max_num_batched_tokens=None)
    assert any(row.repeats is not None for row in rows_of(draw(bounds=bounds)))


@pytest.mark.parametrize("runs", [1, 20, 1000])
def test_costly_targets_run_their_share_several_at_once(runs):
    targets = [*TARGETS * 3, *(Target((i,), GREEDY, share=0.05) for i in (3, 4))]
    loads = draw(runs, targets=targets)
    counts = Counter(row.target for row in rows_of(loads) if row.target is not None)
    some = max(1, runs // 20)
    assert counts == {**dict.fromkeys(range(6), runs), 6: some, 7: some}
    with_costly = [load for load in loads if any(row.target in (6, 7) for row in load.rows)]
    assert with_costly[0] is loads[0]
    assert len(with_costly) <= 1 + len(loads) / 10
    for load in loads:
        assert load.rows
        assert len(load.rows) <= 32
        assert 2 * load.targets >= len(load.rows)


def test_costly_targets_alone_are_drawn_to_the_end():
    loads = draw(100, targets=[Target((3,), GREEDY, share=0.5)])
    assert [row.target for row in rows_of(loads)].count(0) == 50
