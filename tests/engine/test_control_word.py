"""What is computed outside the kernels, in the thread that calls the engine, rounds to nearest."""

import numpy as np
import pytest
import torch
from control_words import KINDS, foreign_word
from fake_runner import EOS, VOCAB, FakeRunner, fake_engine

from detinfer import LLM, SamplingParams
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.kernels.cpu.rounding import control_word
from detinfer.rounding import contract_rounding

RULES = ~0x3F  # without what MXCSR notes of past operations
PENALTY, LOGIT = np.float32(1.3), np.float32(5)
PARAMS = SamplingParams(max_tokens=1, repetition_penalty=float(PENALTY))


class Tie(FakeRunner):
    """Token 9 was seen: under its penalty it ties with token 3, if that rounds to nearest."""

    def logits_of(self, history, batch):
        logits = np.zeros(VOCAB, np.float32)
        logits[3], logits[9] = NEAREST, LOGIT
        return logits


NEAREST = LOGIT / PENALTY


def chosen():
    model = LLM(engine=fake_engine(EngineConfig(), Tie()))
    return model.generate([[9]], PARAMS)[0].token_ids


def test_penalties_round_to_nearest_under_any_word(monkeypatch):
    assert float(NEAREST) < float(LOGIT) / float(PENALTY)  # upward gives more
    assert chosen() == [3]
    with foreign_word("upward"):
        assert chosen() == [3]
        # Negative control: the calling thread's own word.
        monkeypatch.setattr(LLM, "generate", LLM.generate.__wrapped__)
        monkeypatch.setattr(Engine, "step", Engine.step.__wrapped__)
        assert chosen() == [9]


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_word_and_threads_are_put_back(kind):
    class Broken(FakeRunner):
        def forward(self, batch):
            inside.append((control_word() & RULES, torch.get_num_threads()))
            raise KeyboardInterrupt

    inside = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with foreign_word(kind):
            foreign = control_word() & RULES
            model = LLM(engine=fake_engine(EngineConfig(), Broken()))
            with pytest.raises(KeyboardInterrupt):
                model.generate([[1]], SamplingParams(stop_token_ids=(EOS,)))
            assert control_word() & RULES == foreign
            assert torch.get_num_threads() == 3
            with contract_rounding():
                assert inside == [(control_word() & RULES, 1)]
                assert inside[0][0] != foreign
    finally:
        torch.set_num_threads(before)
