"""``detinfer check``, by its default targets, finds each seeded defect that can show, by name.

The engine is the real one over a tiny model, small enough that its pages run out.
"""

import time

import more_mutants  # noqa: F401  (registers its own)
import pytest
from constrained import AsciiRunner
from fake_runner import FakeTokenizer
from mutants import MUTANTS, REWRITTEN
from tiny_runner import TinyModelRunner

from detinfer.check import Check, EngineSubject, default_targets
from detinfer.check.control import control
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine

SEEN = [name for name, mutant in MUTANTS.items() if not mutant.unseen_by_check]
RUNS = 100
SECONDS, REQUESTS = 120, 3  # within which a defect is found and named, and what is left of its load
# What a defect needs in order to show, or a slow one in order to be quick.
WORLDS = {
    "experts_summed_in_order_of_arrival": {"model": "long-experts"},
    "page_numbers_in_one_byte": {"num_pages": 300},
    "keys_of_the_step_not_rounded": {"kv_cache_dtype": "bfloat16"},
    "noise_of_another_slot_from_the_64th_on": {"num_pages": 600, "max_rows": 100},
    "mask_by_slot": {"ascii": True},
    "chunk_relative_kv_blocks": {"max_model_len": 450},
    "split_by_batch_size": {"max_model_len": 450},
}
# By which family each shows: as many rows in a step come of drafts and chunks as of neighbours.
ROWS = {"batch size", "chunk size", "drafts"}
CAUSES = {
    "reduction_tile_by_row_count": ROWS,
    "neighbours_scale": ROWS,
    "chunk_relative_kv_blocks": {"chunk size"},
    "split_by_batch_size": {"batch size"},
    "stale_page_times_zero": {"stale pages"},
    "off_by_one_window": ROWS,
    "keys_of_the_step_not_rounded": {"chunk size"},
    "noise_by_rank": {"what neighbours ask for"},
    "noise_by_slot": {"slot"},
    "mask_by_slot": {"grammar neighbours"},
    "draft_accepted_without_its_penalties": {"drafts"},
    "draft_accepted_without_min_tokens": {"drafts"},
    "every_token_of_a_draft_taken": {"drafts"},
    "positions_from_the_batchs_start": {"slot"},
    "cache_shared_across_modes": {"fast neighbours"},
    "page_freed_while_referenced": {"abort"},
    "page_named_by_its_own_tokens": {"cached pages"},
    "evicted_page_keeps_its_name": {"preemption", "cached pages"},
    "experts_summed_in_order_of_arrival": ROWS,
    "decode_cut_elsewhere_beyond_1536_keys": ROWS,
    "rows_lost_from_384_on": ROWS,
    "tables_of_32_pages": ROWS,
    "window_wider_in_chunks_beyond_512_keys": ROWS,
    "more_sequences_more_rounding_beyond_512_keys": {"batch size"},
    "logprobs_by_the_steps_largest_logit": ROWS,
    "penalties_counted_on_from_the_row_above": ROWS,
    "noise_of_another_slot_from_the_64th_on": {"batch size"},
    "logprobs_by_another_kernel_from_200_rows_on": {"chunk size"},
    "pages_named_before_they_are_written": {"a step that failed before"},
    "chain_forgotten_after_16_pages": {"cached pages"},
    "page_numbers_in_one_byte": {"batch size", "page placement"},
}
# Those that no small load shows, and what they need.
CROWDS = {"noise_of_another_slot_from_the_64th_on": "65 requests in a step"}


class Bytes(FakeTokenizer):
    """Any text as tokens of the tiny models."""

    def encode(self, text, add_special_tokens=True):
        return [byte % 90 for byte in text.encode()]


def make(
    plan,
    model="long",
    num_pages=100,
    max_model_len=None,
    kv_cache_dtype="float32",
    max_rows=32,
    ascii=False,
):
    options = {"plan": plan, "model": model, "kv_cache_dtype": kv_cache_dtype}
    if ascii:  # a tokenizer that grammars compile for
        runner = AsciiRunner(num_pages=num_pages, **options)
    else:
        runner = TinyModelRunner(num_pages, **options)
        runner.tokenizer = Bytes()
    runner.max_model_len = max_model_len or runner.max_model_len
    crowd = {"max_num_seqs": max_rows, "max_num_batched_tokens": 8192} if max_rows > 64 else {}
    subject = EngineSubject(Engine(EngineConfig(**crowd), runner), max_rows)
    return Check(subject, default_targets(subject.bounds), runs=max(RUNS, max_rows), seed=1)


def divergences(check, loads=RUNS):
    """Of each target the first, up to the load that has any."""
    for progress in check.progress():
        if progress.divergent_runs or progress.loads == loads:
            break
    [mode] = check._by_mode.values()
    return [prompt.first_divergence for prompt in mode.prompts if prompt.first_divergence]


@pytest.mark.parametrize("name", [name for name in SEEN if name not in CROWDS])
def test_a_seeded_defect_is_found(name, monkeypatch):
    mutant = MUTANTS[name]
    check = make(mutant.plan, **WORLDS.get(name, {}))
    mutant.patch(monkeypatch)
    assert divergences(check)


@pytest.mark.slow  # each plays dozens of loads
@pytest.mark.parametrize("name", SEEN)
def test_a_seeded_defect_is_named_and_its_load_made_small(name, monkeypatch):
    mutant = MUTANTS[name]
    started = time.monotonic()
    check = make(mutant.plan, **WORLDS.get(name, {}))
    mutant.patch(monkeypatch)
    assert divergences(check)
    found = check.shrunk(check.found()).shrunk
    seconds, requests = time.monotonic() - started, len(found.load.rows)
    print(f"{name}: {seconds:.0f} s, {found.plays} plays, {requests} requests, {found.families}")
    assert seconds < SECONDS
    assert {*found.families} & CAUSES[name]
    if name not in CROWDS:
        assert requests <= REQUESTS


def test_stock_kernels_are_found():
    check = make("modules")
    told = control(check)
    assert told.divergent_runs > 0
    assert told.unique_digests > 1


def test_without_a_defect_nothing_is():
    check = make("fused")
    result = check.run()
    assert result.reproducible, result.first_divergence
    assert result.runs == check.total == 6 * RUNS + 3 * RUNS // 20
    # All that defects hide in was there.
    done = result.judged.engine
    for name in ("prefix_hits", "drafted_tokens", "accepted_tokens", "evictions", "preemptions"):
        assert done[name] > 5, done


@pytest.mark.parametrize(
    ("plan", "world"), [("modules", {}), *((MUTANTS[name].plan, WORLDS[name]) for name in WORLDS)]
)
def test_nor_in_other_worlds(plan, world):
    assert not divergences(make(plan, **world), loads=6)


@pytest.mark.parametrize("name", REWRITTEN)
def test_an_op_rewritten_without_a_defect_passes(name, monkeypatch):
    check = make(REWRITTEN[name].plan, **WORLDS["split_by_batch_size"])
    REWRITTEN[name].patch(monkeypatch)
    assert not divergences(check, loads=4)
