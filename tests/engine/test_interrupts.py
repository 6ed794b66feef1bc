"""Ctrl-C at any bytecode of ``LLM.generate`` leaves an engine that serves as before."""

import random
import sys
from pathlib import Path

import pytest
from fake_runner import FakeRunner, fake_engine

import detinfer
from detinfer import LLM, SamplingParams
from detinfer.config import EngineConfig
from detinfer.engine.block_manager import BlockManager
from detinfer.engine.engine import Engine

SOURCES = str(Path(detinfer.__file__).parent)
CONTROL = SamplingParams(max_tokens=6, ignore_eos=True)
# Five requests on five pages: some are sent back to wait, and cached pages are given away.
PROMPTS = [[1] * 60, [1] * 64 + [2] * 40, [1] * 64 + [3] * 3, [4] * 9, [5]]
PARAMS = [
    SamplingParams(max_tokens=40, ignore_eos=True),
    SamplingParams(max_tokens=30, temperature=1, seed=1, stop=("abc",), logprobs=1),
    SamplingParams(max_tokens=5, ignore_eos=True, prompt_logprobs=0),
    SamplingParams(max_tokens=60, ignore_eos=True),
    SamplingParams(max_tokens=3, ignore_eos=True, n=2),
]


class Interrupt:
    """Raises KeyboardInterrupt before the n-th bytecode that detinfer runs; counts them."""

    def __init__(self, at=None):
        self.at, self.count = at, 0

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.opcode

    def opcode(self, frame, event, _):
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return self.opcode


def call(model, interrupt=None):
    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        return model.generate(PROMPTS, PARAMS)
    finally:
        sys.settrace(before)


def new_model():
    return LLM(engine=fake_engine(EngineConfig(max_num_seqs=5), FakeRunner(num_pages=5)))


def is_left_in_order(model):
    engine = model.engine
    engine.check_integrity()
    assert not engine.has_unfinished()
    assert engine.block_manager.num_free == engine.block_manager.num_pages


def interrupted(points):
    """One model that many calls are interrupted of; the points that were reached."""
    model, done = new_model(), 0
    expected = model.generate([PROMPTS[1], PROMPTS[2]], CONTROL)
    for at in points:
        try:
            call(model, Interrupt(at))
        except KeyboardInterrupt:
            done += 1
        is_left_in_order(model)
        # Whatever was named of pages by the calls that ended early is true.
        assert model.generate([PROMPTS[1], PROMPTS[2]], CONTROL) == expected
    return done


@pytest.fixture(scope="module")
def bytecodes():
    counting = Interrupt()
    model = new_model()
    call(model, counting)
    assert model.engine.stats()["preemptions"] > 0
    assert model.engine.stats()["evictions"] > 0
    return counting.count


def points(bytecodes, count, seed):
    rng = random.Random(seed)
    return [rng.randrange(1, bytecodes) for _ in range(count)]


def test_an_interrupt_at_any_bytecode_leaves_the_engine_in_order(bytecodes):
    # A warm engine finds pages and takes fewer bytecodes than a new one; the first and the last
    # are those outside of any step.
    near_ends = [*range(1, 60, 3), *range(bytecodes // 2, bytecodes // 2 + 60, 3)]
    assert interrupted([*near_ends, *points(bytecodes // 2, 40, seed=0)]) > 60


@pytest.mark.slow
def test_600_interrupts_leave_the_engine_in_order(bytecodes):
    assert interrupted(points(bytecodes, 600, seed=1)) > 400


def test_the_clean_up_itself_may_be_interrupted():
    """Each bytecode of the clean-up after a call that went wrong, one at a time."""

    class Broken(FakeRunner):
        def forward(self, batch):
            raise KeyboardInterrupt

    class InDiscard(Interrupt):
        def __call__(self, frame, event, _):
            names = ("discard", "rebuild", "generate")
            return super().__call__(frame, event, _) if frame.f_code.co_name in names else None

    engine = fake_engine(EngineConfig(max_num_seqs=5), Broken(num_pages=5))
    counting = InDiscard()
    with pytest.raises(KeyboardInterrupt):
        call(LLM(engine=engine), counting)
    assert counting.count > 200
    for at in range(1, counting.count, 2):
        model = LLM(engine=fake_engine(EngineConfig(max_num_seqs=5), Broken(num_pages=5)))
        with pytest.raises(KeyboardInterrupt):
            call(model, InDiscard(at))
        is_left_in_order(model)


def test_a_step_that_is_not_put_in_order_is_found_out(bytecodes, monkeypatch):
    monkeypatch.setattr(BlockManager, "rebuild", lambda self, owners: None)
    monkeypatch.setattr(Engine, "check_integrity", lambda self: None)
    with pytest.raises((AssertionError, RuntimeError, KeyError)):
        interrupted(points(bytecodes // 2, 30, seed=2))
