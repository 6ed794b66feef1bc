"""``detinfer check`` with its default targets finds each seeded defect that can show, by name.

The engine is the real one over a tiny model, small enough that its pages run out.
"""

import more_mutants  # noqa: F401  (registers its own)
import pytest
from fake_runner import FakeTokenizer
from mutants import MUTANTS, REWRITTEN
from tiny_runner import TinyModelRunner

from detinfer.check import Check, EngineSubject, default_targets
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine

SEEN = [name for name, mutant in MUTANTS.items() if not mutant.unseen_by_check]
RUNS = 100
# What a defect needs in order to show, or a slow one in order to be quick.
WORLDS = {
    "experts_summed_in_order_of_arrival": {"model": "long-experts"},
    "page_numbers_in_one_byte": {"num_pages": 300},
    "chunk_relative_kv_blocks": {"max_model_len": 450},
    "split_by_batch_size": {"max_model_len": 450},
}


class Bytes(FakeTokenizer):
    """Any text as tokens of the tiny models."""

    def encode(self, text, add_special_tokens=True):
        return [byte % 90 for byte in text.encode()]


def make(plan, model="long", num_pages=100, max_model_len=None):
    runner = TinyModelRunner(num_pages, plan, model=model)
    runner.tokenizer = Bytes()
    runner.max_model_len = max_model_len or runner.max_model_len
    subject = EngineSubject(Engine(EngineConfig(), runner))
    return Check(subject, default_targets(subject.bounds), runs=RUNS, seed=1)


def divergences(check, loads=RUNS):
    """Of each target the first, up to the load that has any."""
    for progress in check.progress():
        if progress.divergent_runs or progress.loads == loads:
            break
    [mode] = check._by_mode.values()
    return [prompt.first_divergence for prompt in mode.prompts if prompt.first_divergence]


@pytest.mark.parametrize("name", SEEN)
def test_a_seeded_defect_is_found(name, monkeypatch):
    mutant = MUTANTS[name]
    check = make(mutant.plan, **WORLDS.get(name, {}))
    mutant.patch(monkeypatch)
    assert divergences(check)


def test_without_a_defect_nothing_is():
    check = make("fused")
    result = check.run()
    assert result.reproducible, result.first_divergence
    assert result.runs == check.total == 6 * RUNS + 2 * RUNS // 20
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
