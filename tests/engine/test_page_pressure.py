"""Prefixes found in the cache and requests sent back to wait give the answers they always gave."""

import random

import pytest
from fake_runner import FakeRunner, fake_engine

from detinfer.config import EngineConfig
from detinfer.params import SamplingParams

FREE = SamplingParams(max_tokens=40, ignore_eos=True)


def prompt_of(size, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(90) for _ in range(size)]


def finish(engine):
    """Last increments by request, and all token ids."""
    last, ids = {}, {}
    while engine.has_unfinished():
        for output in engine.step():
            ids.setdefault(output.request_id, []).extend(output.token_ids)
            last[output.request_id] = output
        engine.check_integrity()
    return last, ids


def answer(engine, prompt, params=FREE, name="x"):
    engine.add_request(name, prompt, params)
    last, ids = finish(engine)
    return ids[name], last[name].digest, last[name].cached_tokens


def alone(prompt, params=FREE, runner=None):
    return answer(fake_engine(EngineConfig(prefix_caching=False), runner), prompt, params)[:2]


@pytest.mark.parametrize("shared", [0, 1, 63, 64, 65, 127, 128, 129, 199, 200])
def test_warm_is_cold_at_every_shared_length(shared):
    first, tail = prompt_of(200), prompt_of(70, seed=1)
    other = (first[shared] + 1) % 90 if shared < 200 else 3
    prompt = [*first[:shared], other, *tail][:230]
    engine = fake_engine()
    answer(engine, first, name="first")
    ids, digest, cached = answer(engine, prompt)
    assert (ids, digest) == alone(prompt)
    assert cached == shared // 64 * 64


def test_a_prompt_of_full_pages_computes_its_last_page():
    prompt = prompt_of(128)
    engine = fake_engine()
    cold = answer(engine, prompt, name="cold")
    warm = answer(engine, prompt, name="warm")
    assert warm[:2] == cold[:2]
    assert (cold[2], warm[2]) == (0, 64)


def test_a_continued_conversation_finds_its_own_answer():
    prompt = prompt_of(100)
    engine = fake_engine()
    ids, _, _ = answer(engine, prompt, name="turn-1")
    following = prompt + ids + prompt_of(20, seed=2)
    got = answer(engine, following, name="turn-2")
    assert got[:2] == alone(following)
    assert got[2] == 128  # a page of them holds generated tokens


def test_modes_never_share_pages():
    prompt = prompt_of(200)
    engine = fake_engine()
    fast = SamplingParams(max_tokens=5, ignore_eos=True, deterministic=False)
    assert answer(engine, prompt, fast, "fast-1")[2] == 0
    assert answer(engine, prompt, name="slow-1")[2] == 0
    assert answer(engine, prompt, fast, "fast-2")[2] == 192
    assert answer(engine, prompt, name="slow-2")[2] == 192


def test_salts_never_share_pages():
    prompt = prompt_of(200)
    engine = fake_engine()
    found = []
    for i, salt in enumerate(["a", "b", "a", ""]):
        engine.add_request(f"r{i}", prompt, FREE, salt)
        last, ids = finish(engine)
        found.append(last[f"r{i}"].cached_tokens)
        assert (ids[f"r{i}"], last[f"r{i}"].digest) == alone(prompt)
    assert found == [0, 0, 192, 0]
    stats = engine.stats()
    assert (stats["prefix_queries"], stats["prefix_hit_tokens"]) == (800, 192)


def test_off_means_off():
    engine = fake_engine(EngineConfig(prefix_caching=False))
    prompt = prompt_of(200)
    assert [answer(engine, prompt, name=name)[2] for name in "ab"] == [0, 0]
    assert engine.stats()["prefix_hits"] == 0


def test_requests_running_together_share_pages():
    prompt = prompt_of(200)
    engine = fake_engine(runner=FakeRunner(num_pages=12))
    engine.add_request("a", prompt, FREE)
    while engine.scheduler.waiting or not engine.scheduler.running[0].decoding:
        engine.step()
    for name in ("b", "c", "d"):
        engine.add_request(name, prompt, FREE)
    last, _ = finish(engine)
    assert {o.digest for o in last.values()} == {alone(prompt)[1]}
    assert engine.stats()["preemptions"] == 0  # four of them fit only because they share


@pytest.mark.parametrize("seed", range(20))
def test_preempted_requests_give_the_same_answers(seed):
    rng = random.Random(seed)
    engine = fake_engine(runner=FakeRunner(num_pages=rng.choice([6, 7, 9])))
    prompts = {f"r{i}": prompt_of(rng.choice([1, 30, 64, 100, 150]), i) for i in range(6)}
    params = SamplingParams(max_tokens=150, ignore_eos=True, temperature=0.8, seed=seed)
    for name, prompt in prompts.items():
        engine.add_request(name, prompt, params)
    last, ids = finish(engine)
    assert engine.stats()["preemptions"] > 0
    for name, prompt in prompts.items():
        assert (ids[name], last[name].digest) == alone(prompt, params)
    assert engine.stats()["free_pages"] == engine.stats()["num_pages"]


def test_the_newest_is_preempted_and_order_of_arrival_stays():
    engine = fake_engine(runner=FakeRunner(num_pages=5))
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    for i in range(4):
        engine.add_request(f"r{i}", prompt_of(60, i), params)
    ended = []
    while engine.has_unfinished():
        ended += [o.request_id for o in engine.step() if o.finish_reason]
        engine.check_integrity()  # checks the order of arrival
    assert ended == sorted(ended)
    assert engine.stats()["preemptions"] > 0


def test_a_runner_that_loses_recomputed_pages_is_found_out():
    """The negative control: what a preempted request computes again, it computes wrong."""

    class Forgetful(FakeRunner):
        seen = 0

        def forward(self, batch):
            starts = batch.positions[batch.query_start[:-1]]
            self.seen += int((starts == 0).sum())
            if self.seen > 4 and (starts == 0).any():  # each starts once: more is computed anew
                batch.input_ids[:] = 1
            return super().forward(batch)

    params = SamplingParams(max_tokens=150, ignore_eos=True)
    prompts = {f"r{i}": prompt_of(60, i) for i in range(4)}
    engine = fake_engine(EngineConfig(prefix_caching=False), Forgetful(num_pages=5))
    for name, prompt in prompts.items():
        engine.add_request(name, prompt, params)
    last, _ = finish(engine)
    assert any(last[name].digest != alone(prompts[name], params)[1] for name in prompts)
