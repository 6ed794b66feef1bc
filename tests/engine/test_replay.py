"""An answer that is given is found out in few steps, and the answer is the one it is without."""

import random

import pytest
from fake_runner import VOCAB, FakeRunner, fake_engine
from test_speculation import requests_of

from detinfer.config import EngineConfig
from detinfer.engine import request as request_module
from detinfer.params import SamplingParams


def run(requests, answers=None, config=None, runner=None):
    """Everything each request got, and the engine."""
    engine = fake_engine(config or EngineConfig(), runner)
    got = {}
    for i, (prompt, params) in enumerate(requests):
        engine.add_request(f"r{i}", prompt, params, answer=answers[i] if answers else ())
    while engine.has_unfinished():
        for output in engine.step():
            whole = got.setdefault(output.request_id, {"text": "", "ids": [], "sums": []})
            whole["text"] += output.text
            whole["ids"] += output.token_ids
            whole["sums"] += output.checksums or []
            if output.finish_reason:
                whole |= {"reason": output.finish_reason, "digest": output.digest}
        engine.check_integrity()
    return [got[f"r{i}"] for i in range(len(requests))], engine


def with_checksums(requests):
    return [
        (prompt, SamplingParams(**{**vars(params), "checksums": True}))
        for prompt, params in requests
    ]


@pytest.mark.parametrize("block", range(4))
def test_a_replay_gives_what_was_generated(block):
    steps = replayed = 0
    for seed in range(block * 15, block * 15 + 15):
        rng = random.Random(seed)
        requests = with_checksums([requests_of(rng) for _ in range(rng.choice([1, 2, 5]))])
        plain, slow = run(requests, config=EngineConfig(speculation=False))
        given = [list(one["ids"]) for one in plain]
        if rng.random() < 0.5:  # an answer that is wrong somewhere changes nothing either
            wrong = rng.choice(given)
            wrong[rng.randrange(len(wrong))] = rng.randrange(VOCAB)
        budget = EngineConfig(max_num_batched_tokens=rng.choice([16, 512]))
        got, quick = run(requests, given, budget, FakeRunner(num_pages=rng.choice([6, 64])))
        assert got == plain, f"seed {seed}"
        steps += slow.stats()["steps"]
        replayed += quick.stats()["steps"]
    assert replayed < steps / 2


def test_a_prompt_and_a_whole_answer_take_one_step():
    request = [([1, 2, 3], SamplingParams(max_tokens=200, ignore_eos=True, checksums=True))]
    [plain], _ = run(request)
    [got], engine = run(request, [plain["ids"]])
    assert got == plain
    assert len(plain["sums"]) == 200
    assert engine.stats()["steps"] == 1


def test_a_long_answer_is_verified_a_bounded_number_of_rows_at_a_time():
    request = [([1, 2, 3], SamplingParams(max_tokens=390, ignore_eos=True))]
    [plain], _ = run(request)
    runner = FakeRunner()
    [got], engine = run(request, [plain["ids"]], runner=runner)
    assert got == plain
    most = engine.scheduler.limits.max_scored
    assert max(len(batch.logit_rows) for batch in runner.batches) == most + 1
    assert engine.stats()["steps"] == 2


def test_checksums_come_only_where_asked_for():
    [plain], _ = run([([1, 2], SamplingParams(max_tokens=3))])
    assert plain["sums"] == []


def test_a_given_answer_taken_at_its_word_is_found_out(monkeypatch):
    """The negative control: every given token is taken, right or wrong."""
    monkeypatch.setattr(request_module, "accepted", lambda draft, choices: len(draft))
    request = [([1, 2, 3], SamplingParams(max_tokens=50, ignore_eos=True, checksums=True))]
    [plain], _ = run(request, config=EngineConfig(speculation=False))
    given = list(plain["ids"])
    given[20] = (given[20] + 1) % VOCAB
    [got], _ = run(request, [given])
    assert got != plain
