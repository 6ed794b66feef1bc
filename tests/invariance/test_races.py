"""A region of the fused step that does not wait for its last item, found without luck.

The step is compiled once more, with a thread that dawdles over the last token's keys: whoever does
not wait for it attends over a page of NaN.
"""

import pytest
from fuzzer import Difference, compare
from kernels_anew import step_anew
from scale import ALONE, run
from tiny_models import tokens
from tiny_runner import TinyModelRunner

from detinfer.engine.engine import Engine
from detinfer.params import SamplingParams
from detinfer.runner import portable_fused as fused

PREPARE = "    t = take(region, m)\n    while t < m:\n        prepare_token("
DAWDLE = (
    "    t = take(region, m)\n    while t < m:\n        if t == m - 1:\n"
    "            for _ in range(1000000):\n                _relax()\n        prepare_token("
)
QUANTISE = "        if quantised:\n            quantise_row(result + at,"
DAWDLE_TOO = (
    "        if row == rows - 1:\n            for _ in range(1000000):\n                _relax()\n"
) + QUANTISE
QUANTISED = "    wait(region, rows)\n    return result\n"
BARRIER = "    wait(region, m)\n\n\n@kernel\ndef _quantise("


def hunt(model="windowed"):
    """Prompts of one and several pages on two threads, against the same on one."""
    params = SamplingParams(max_tokens=2, ignore_eos=True, logprobs=1)
    runner = TinyModelRunner(4, model=model)
    for length in range(50, 200, 25):
        prompt = tokens(length, seed=length)
        answers = []
        for threads in (1, 2):
            runner.threads = threads
            runner.spoil(range(4))
            answers.append(run(Engine(ALONE, runner), {"x": (prompt, params)})["x"])
        compare(f"{length} tokens on two threads", answers[1], answers[0])


@pytest.mark.slow
def test_a_thread_that_dawdles_changes_nothing(monkeypatch):
    monkeypatch.setattr(fused, "kernel", step_anew((PREPARE, DAWDLE)))
    hunt()


@pytest.mark.slow
def test_attention_before_all_keys_are_written(monkeypatch):
    """The mutant of that name: one barrier is gone."""
    barrier = (BARRIER, BARRIER.replace("    wait(region, m)\n", ""))
    monkeypatch.setattr(fused, "kernel", step_anew((PREPARE, DAWDLE), barrier))
    with pytest.raises(Difference):
        hunt()


@pytest.mark.slow
def test_a_linear_before_all_rows_are_quantised(monkeypatch):
    """Whoever does not wait multiplies the quantised rows of a step or layer before."""
    barrier = (QUANTISED, QUANTISED.replace("    wait(region, rows)\n", ""))
    monkeypatch.setattr(fused, "kernel", step_anew((QUANTISE, DAWDLE_TOO), barrier))
    with pytest.raises(Difference):
        hunt("packed")
