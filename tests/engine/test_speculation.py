"""Drafts can only save steps: tokens, text, log-probabilities and digests stay as they are."""

import random

import numpy as np
import pytest
from fake_runner import VOCAB, FakeRunner, fake_engine

from detinfer.config import EngineConfig
from detinfer.engine import request as request_module
from detinfer.engine.speculation import LONGEST, NGRAMS, PATIENCE, PromptLookup
from detinfer.params import SamplingParams


class RepeatingRunner(FakeRunner):
    """Likes what came seven tokens before, most of the time: drafts are right, and wrong."""

    def logits_of(self, history, batch):
        logits = super().logits_of(history, batch)
        if len(history) >= 7 and logits[5] > -2.5:
            logits[history[-7] % VOCAB] += 9
        return logits


def answers(speculation, requests, config=None, runner=None):
    """Everything each request got, and the engine."""
    engine = fake_engine(config or EngineConfig(speculation=speculation), runner)
    got = {}
    for i, (prompt, params) in enumerate(requests):
        engine.add_request(f"r{i}", prompt, params)
    while engine.has_unfinished():
        for output in engine.step():
            whole = got.setdefault(output.request_id, {"text": "", "ids": [], "logprobs": []})
            whole["text"] += output.text
            whole["ids"] += output.token_ids
            whole["logprobs"] += output.logprobs or []
            assert output.completion_tokens == len(whole["ids"])
            if output.finish_reason:
                whole |= {"reason": output.finish_reason, "digest": output.digest}
        engine.check_integrity()
    return got, engine


def requests_of(rng):
    prompt = [rng.randrange(90) for _ in range(rng.choice([7, 20, 60, 130]))] * rng.choice([1, 2])
    params = SamplingParams(
        max_tokens=rng.randint(1, 90),
        temperature=rng.choice([0.0, 0.0, 0.7]),
        top_k=rng.choice([0, 5]),
        seed=rng.getrandbits(60),
        stop=rng.choice([(), ("AB",), ("a", "zz"), (chr(33 + prompt[0]) + chr(33 + prompt[1]),)]),
        stop_token_ids=rng.choice([(), (prompt[0],)]),
        ignore_eos=rng.random() < 0.5,
        min_tokens=rng.choice([0, 1]),
        logprobs=rng.choice([None, 0, 3]),
        deterministic=rng.random() < 0.7,
    )
    return prompt, params


@pytest.mark.parametrize("block", range(4))
def test_answers_are_those_without_drafts(block):
    drafted = accepted = 0
    for seed in range(block * 15, block * 15 + 15):
        rng = random.Random(seed)
        requests = [requests_of(rng) for _ in range(rng.choice([1, 2, 5]))]
        plain, _ = answers(False, requests, runner=RepeatingRunner())
        got, engine = answers(True, requests, runner=RepeatingRunner())
        assert got == plain, f"seed {seed}"
        drafted += engine.stats()["drafted_tokens"]
        accepted += engine.stats()["accepted_tokens"]
    assert 50 < accepted < drafted - 50  # both kinds happened


def test_repeated_text_takes_fewer_steps():
    class Periodic(FakeRunner):
        def logits_of(self, history, batch):
            logits = super().logits_of(history, batch)
            logits[history[-7]] += 50
            return logits

    request = [(list(range(7)) * 2, SamplingParams(max_tokens=200, ignore_eos=True))]
    plain, slow = answers(False, request, runner=Periodic())
    got, quick = answers(True, request, runner=Periodic())
    assert got == plain
    assert slow.stats()["steps"] == 200
    assert quick.stats()["steps"] < 40


def test_a_draft_taken_without_its_digest_is_found_out(monkeypatch):
    """The negative control: every token of a draft is taken, right or wrong."""
    monkeypatch.setattr(request_module, "accepted", lambda draft, choices: len(draft))
    differing = 0
    for seed in range(10):
        requests = [requests_of(random.Random(seed))]
        plain, _ = answers(False, requests, runner=RepeatingRunner())
        got, _ = answers(True, requests, runner=RepeatingRunner())
        differing += got != plain
    assert differing > 2


def test_drafts_never_ask_for_pages_or_past_an_end():
    prompt = [1, 2, 3, 4, 5, 6, 7] * 9  # 63 tokens
    request = [(prompt, SamplingParams(max_tokens=66, ignore_eos=True))]
    got, engine = answers(True, request, runner=RepeatingRunner(num_pages=3))
    assert len(got["r0"]["ids"]) == 66
    assert engine.stats()["preemptions"] == 0
    for batch in engine.runner.batches:
        assert batch.positions.max() < 129


def test_a_lookup_proposes_what_followed_last():
    lookup = PromptLookup()
    assert lookup.propose([1, 2], 5) == []
    text = [1, 2, 3, 9, 1, 2, 3]
    assert lookup.propose(text, 2) == [9, 1]
    assert lookup.propose([*text, 8, 1, 2, 3], 9)[:2] == [8, 1]
    assert lookup.propose([*text, 8, 1, 2, 3, 7, 7, 7], 9) == []


def test_a_lookup_learns_from_its_failures_and_successes():
    lookup, text = PromptLookup(), list(range(20)) * 2
    lengths = []
    for _ in range(4):
        draft = lookup.propose(text, 99)
        lengths.append(len(draft))
        lookup.judge(len(draft), len(draft))
    assert lengths == sorted(lengths)
    assert lengths[-1] == LONGEST
    waits = []
    for _ in range(7):
        draft = lookup.propose(text, 99)
        lookup.judge(len(draft), 0)
        waits.append(0)
        while not lookup.propose(text, 99):
            waits[-1] += 1
        lookup._pause = 0
    assert waits[:3] == [2, 4, 8]
    assert max(waits) == PATIENCE


def last_occurrence(text, n):
    """Where the last ``n`` tokens ended when they occurred before; None if they did not."""
    ends = [end for end in range(n, len(text)) if text[end - n : end] == text[-n:]]
    return ends[-1] if ends and len(text) > n else None


def test_the_index_grows_with_the_text_and_equals_a_search():
    rng = np.random.default_rng(0)
    lookup, text, by_length = PromptLookup(), [], dict.fromkeys(NGRAMS, 0)
    for token in rng.integers(0, 4, 300).tolist():
        text.append(token)
        found = {n: last_occurrence(text, n) for n in NGRAMS}
        n = next((n for n in NGRAMS if found[n] is not None), None)
        assert lookup.propose(text, 1) == ([] if n is None else text[found[n] : found[n] + 1])
        if n is not None:
            by_length[n] += 1
    assert min(by_length.values()) > 20  # the longer one is preferred, the shorter one is used


def test_more_tokens_in_common_are_the_better_sign():
    text = [9, 1, 2, 3, 7, 1, 2, 3, 8, 9, 1, 2, 3]
    assert PromptLookup().propose(text, 1) == [7]
    assert PromptLookup().propose([*text[1:9], 0, 1, 2, 3], 1) == [8]
