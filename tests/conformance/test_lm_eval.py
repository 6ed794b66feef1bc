"""lm-eval's ``local-completions``: its exact-float greedy test, and equal scores at any batch size.

A score is compared as it was logged, every bit of it: JSON carries floats exactly.
"""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest

pytestmark = pytest.mark.conformance

SIZES = ["1:1", "8:1", "1:4", "8:4"]  # batch size and concurrent requests


@pytest.fixture(scope="module")
def runs(server, run_client) -> dict[str, Any]:
    """What lm-eval logged of every sample, by batch size."""
    logged: dict[str, Any] = json.loads(run_client("lm_eval", "lm_eval_client.py", server, *SIZES))
    return logged


def differences(runs: dict[str, Any]) -> list[str]:
    """Where a run is not, to the bit, the first one."""
    first, *others = runs
    return [
        f"{size} {task} sample {i}: {sample['resps']}, expected {expected['resps']} as at {first}"
        for size in others
        for task, samples in runs[size].items()
        for i, (sample, expected) in enumerate(zip(samples, runs[first][task], strict=True))
        if repr(sample) != repr(expected)
    ]


def test_scores_and_answers_are_equal_at_every_batch_size(runs):
    assert list(runs) == SIZES
    assert {task: len(samples) for task, samples in runs["1:1"].items()} == {
        "choose": 6,
        "continue": 12,
        "write": 12,
    }
    assert differences(runs) == []


def test_one_float_moved_by_one_ulp_is_a_difference(runs):
    moved = copy.deepcopy(runs)
    answer = moved["8:1"]["choose"][3]["resps"][1][0]
    answer[0] = math.nextafter(answer[0], 0.0)
    [difference] = differences(moved)
    assert difference.startswith("8:1 choose sample 3:")


def test_greedy_texts_and_only_those_pass_the_exact_float_test(runs):
    for samples in (run["continue"] for run in runs.values()):
        found = [sample["resps"][0][0][1] for sample in samples]
        assert found == [sample["doc"]["greedy"] for sample in samples]


def test_answers_are_the_greedy_texts(runs):
    for sample in runs["1:1"]["write"]:
        if sample["doc"]["greedy"]:
            assert sample["resps"][0][0] == sample["doc"]["text"]
