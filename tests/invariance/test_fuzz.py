"""Whatever happens around a request, it gets what it gets alone: drawn episodes on a real model."""

import numpy as np
import pytest
from fuzzer import Failure, World, draw_operations, fuzz, run_episode, shrink

MUST_HAPPEN = (
    "preemptions",
    "evictions",
    "prefix_hits",
    "rejected_drafts",
    "split_chunks",
    "aborts",
)


def test_answers_do_not_depend_on_what_happens_around_them():
    counts = fuzz(World(), steps=1500)
    assert counts["compared"] > 50
    assert all(counts[name] for name in (*MUST_HAPPEN, "accepted_tokens")), counts


def test_steps_that_fail_leave_nothing_wrong_behind():
    counts = fuzz(World(faults=0.02), steps=600)
    assert counts["failed"] > 10
    assert counts["compared"] > 15


def test_the_models_own_modules_give_the_answers_of_the_fused_step():
    """Both plans, against answers that one of them gave alone."""
    for model, steps in (("windowed", 150), ("packed", 150), ("packed-k", 80)):
        modules, fused = World("modules", model), World(model=model)
        modules.alone = fused.alone
        assert fuzz(modules, steps)["compared"] > 2


def test_answers_of_weights_in_blocks_do_not_depend_on_what_happens_around_them():
    counts = fuzz(World(model="packed"), steps=400)
    assert counts["compared"] > 15
    assert counts["accepted_tokens"], counts
    assert fuzz(World(model="packed-k"), steps=150)["compared"] > 5


def test_nor_do_those_of_experts_in_blocks():
    assert fuzz(World("modules", "packed-experts"), steps=60)["compared"] > 2


def test_answers_of_a_cache_in_bfloat16_do_not_depend_on_what_happens_around_them():
    for plan, steps in (("fused", 400), ("modules", 100)):
        counts = fuzz(World(plan, kv_cache_dtype="bfloat16"), steps)
        assert counts["compared"] > steps / 25
        assert counts["prefix_hits"], counts
        assert counts["accepted_tokens"], counts


@pytest.mark.slow
def test_many_thousand_steps():
    counts = fuzz(World(), steps=40_000, seed=1000)
    print(dict(counts))
    assert counts["compared"] > 500
    assert all(counts[name] >= 500 for name in MUST_HAPPEN), counts


class SlotLeak(World):
    """The negative control: the second sequence of a step has another last bit."""

    def __init__(self):
        super().__init__()
        forward = self.runner.forward

        def leaky(batch):
            logits = forward(batch)
            if len(batch.query_start) > 2:
                logits.numpy().view(np.int32)[1:, 7] ^= 1
            return logits

        self.runner.forward = leaky


def test_one_bit_in_one_slot_is_found_and_its_episode_shrunk():
    with pytest.raises(Failure, match=r"under load and .* alone") as caught:
        fuzz(SlotLeak(), steps=1500)
    left = caught.value.operations
    assert [name for name, *_ in left].count("add") == 2
    assert len(left) < 6
    with pytest.raises(AssertionError):
        run_episode(SlotLeak(), left)
    run_episode(World(), left)  # and it is the leak that fails


def test_an_episode_is_a_function_of_its_seed():
    assert draw_operations(7) == draw_operations(7) != draw_operations(8)
    assert run_episode(World(), draw_operations(7)) == run_episode(World(), draw_operations(7))


def test_shrinking_keeps_what_is_needed():
    assert shrink(list(range(100)), lambda some: {7, 63} <= set(some)) == [7, 63]
