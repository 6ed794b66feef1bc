"""A region of the fused step that does not wait for its last item, found without luck.

The step is compiled once more, with a thread that dawdles over the last token's keys: whoever does
not wait for it attends over a page of NaN.
"""

import functools
import inspect
import types

import numba
import pytest
from fuzzer import Difference, compare
from scale import ALONE, run
from tiny_models import tokens
from tiny_runner import TinyModelRunner

from detinfer.engine.engine import Engine
from detinfer.kernels.cpu.fused import step as kernel
from detinfer.params import SamplingParams
from detinfer.runner import portable_fused as fused

IMPORT = "from detinfer.kernels.cpu.jit import kernel, parallel_kernel\n"
PREPARE = "    t = take(region)\n    while t < m:\n        prepare_token("
DAWDLE = (
    "    t = take(region)\n    while t < m:\n        if t == m - 1:\n"
    "            for _ in range(1000000):\n                _relax()\n        prepare_token("
)
BARRIER = "    wait(region, m)\n\n\n@kernel\ndef _attend("


def compiled_anew(*changes):
    """The fused kernels with other pieces of source, not in any cache on disk."""
    source = inspect.getsource(kernel)
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    module = types.ModuleType("fused_anew")
    module.kernel = functools.partial(numba.njit, nogil=True, error_model="numpy")
    module.parallel_kernel = functools.partial(module.kernel, parallel=True)
    exec(compile(source, "fused_anew", "exec"), module.__dict__)
    return module


def hunt():
    """Prompts of one and several pages on two threads, against the same on one."""
    params = SamplingParams(max_tokens=2, ignore_eos=True, logprobs=1)
    runner = TinyModelRunner(4)
    for length in range(50, 200, 25):
        prompt = tokens(length, seed=length)
        answers = []
        for threads in (1, 2):
            runner.threads = threads
            runner.spoil(range(4))
            answers.append(run(Engine(ALONE, runner), {"x": (prompt, params)})["x"])
        compare(f"{length} tokens on two threads", answers[1], answers[0])


TEAM = (IMPORT, "from detinfer.kernels.cpu.team import _relax\n")


@pytest.mark.slow
def test_a_thread_that_dawdles_changes_nothing(monkeypatch):
    monkeypatch.setattr(fused, "kernel", compiled_anew(TEAM, (PREPARE, DAWDLE)))
    hunt()


@pytest.mark.slow
def test_attention_before_all_keys_are_written(monkeypatch):
    """The mutant of that name: one barrier is gone."""
    barrier = (BARRIER, BARRIER.replace("    wait(region, m)\n", ""))
    monkeypatch.setattr(fused, "kernel", compiled_anew(TEAM, (PREPARE, DAWDLE), barrier))
    with pytest.raises(Difference):
        hunt()
