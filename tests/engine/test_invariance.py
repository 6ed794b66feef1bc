"""A request's tokens, text, digest and log-probabilities are the same under every schedule."""

import random

import numpy as np
import pytest
from fake_runner import VOCAB, FakeRunner, LeakyRunner, fake_engine

from detinfer.config import EngineConfig
from detinfer.params import SamplingParams


class Answers:
    """Collects increments into whole answers, and checks what every stream must satisfy."""

    def __init__(self):
        self.parts = {}
        self.finished = {}

    def add(self, outputs):
        assert len({o.request_id for o in outputs}) == len(outputs)
        for output in outputs:
            assert output.request_id not in self.finished
            text, ids, logprobs = self.parts.setdefault(output.request_id, ([], [], []))
            text.append(output.text)
            ids.extend(output.token_ids)
            logprobs.extend(output.logprobs or [])
            assert output.completion_tokens == len(ids)
            if output.finish_reason is not None:
                self.finished[output.request_id] = output

    def of(self, request_id):
        text, ids, logprobs = self.parts[request_id]
        last = self.finished[request_id]
        return "".join(text), ids, logprobs, last.finish_reason, last.digest


def random_params(rng):
    max_tokens = rng.randint(1, 40)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=rng.choice([0.0, 0.0, 0.7, 1.5]),
        top_k=rng.choice([0, 0, 5]),
        top_p=rng.choice([1.0, 0.9]),
        min_p=rng.choice([0.0, 0.01]),
        seed=rng.getrandbits(64),
        stop=rng.choice([(), (), ("AB",), ("a", "zz")]),
        stop_token_ids=rng.choice([(), (11, 12)]),
        ignore_eos=rng.random() < 0.3,
        min_tokens=rng.choice([0, rng.randint(0, max_tokens)]),
        logprobs=rng.choice([None, 0, 3]),
        deterministic=rng.random() < 0.7,
    )


def random_prompt(rng):
    return [rng.randrange(VOCAB - 2) for _ in range(rng.choice([1, 5, 63, 64, 65, 130, 200]))]


def alone(prompt, params, runner=None):
    engine = fake_engine(runner=runner)
    engine.add_request("x", prompt, params)
    answers = Answers()
    while engine.has_unfinished():
        answers.add(engine.step())
    engine.check_integrity()
    return answers.of("x")


def under_load(rng, targets, runner, aborts=True):
    """Runs ``targets`` among random neighbours, arrivals, limits, pages and aborts."""
    engine = fake_engine(EngineConfig(max_num_seqs=8), runner)
    todo = [(f"target-{i}", *target) for i, target in enumerate(targets)]
    neighbours = rng.randint(1, 12)
    todo += [(f"other-{i}", random_prompt(rng), random_params(rng)) for i in range(neighbours)]
    rng.shuffle(todo)
    answers, aborted = Answers(), {}
    for _ in range(5000):
        if not todo and not engine.has_unfinished():
            break
        while todo and rng.random() < 0.4:
            engine.add_request(*todo.pop())
        limits = engine.scheduler.limits
        limits.max_num_seqs = rng.randint(1, 10)
        limits.max_num_batched_tokens = rng.choice([1, 2, 7, 64, 65, 300])
        limits.max_chunk = rng.choice([None, rng.randint(1, 130)])
        if aborts and rng.random() < 0.05:
            victim = f"other-{rng.randrange(neighbours)}"
            last = engine.abort(victim)
            if last is not None:
                answers.add([last])
                aborted[victim] = last
        engine.block_manager.shuffle(rng)
        done = len(runner.batches)
        answers.add(engine.step())
        for batch in runner.batches[done:]:
            lengths = np.diff(batch.query_start)
            assert 0 < len(lengths) <= limits.max_num_seqs
            assert lengths.min() > 0
            assert lengths.max() <= (limits.max_chunk or limits.max_num_batched_tokens)
            assert len(batch.input_ids) <= limits.max_num_batched_tokens
        engine.check_integrity()
    assert not engine.has_unfinished()
    assert engine.block_manager.num_free == engine.block_manager.num_pages
    assert all(last.finish_reason == "abort" for last in aborted.values())
    return answers


@pytest.mark.parametrize("block", range(8))
def test_answers_do_not_depend_on_the_schedule(block):
    for seed in range(block * 40, block * 40 + 40):
        rng = random.Random(seed)
        targets = [(random_prompt(rng), random_params(rng)) for _ in range(2)]
        expected = [alone(*target) for target in targets]
        answers = under_load(rng, targets, FakeRunner(num_pages=rng.choice([9, 16, 40])))
        for i, answer in enumerate(expected):
            assert answers.of(f"target-{i}") == answer, f"schedule {seed}"


def test_a_runner_that_leaks_the_batch_size_is_found_out():
    differing = 0
    for seed in range(10):
        rng = random.Random(seed)
        target = (random_prompt(rng), random_params(rng))
        expected = alone(*target, runner=LeakyRunner())
        got = under_load(rng, [target], LeakyRunner()).of("target-0")
        differing += got[4] != expected[4]
    assert differing >= 5


@pytest.mark.parametrize("mistake", ["page", "position", "stale"])
def test_paging_mistakes_are_found_out(mistake):
    class Mistaken(FakeRunner):
        def forward(self, batch):
            if mistake == "page" and batch.block_tables.shape[1] > 1:
                batch.block_tables[:, 1] = batch.block_tables[:, 0]
            elif mistake == "position":
                batch.positions[batch.positions > 70] -= 1
            elif mistake == "stale":
                self.pages[:] = np.roll(self.pages, 1, axis=0)
            return super().forward(batch)

    prompt, params = list(range(90)) * 2, SamplingParams(max_tokens=5, ignore_eos=True)
    assert alone(prompt, params, Mistaken()) != alone(prompt, params)


def test_every_chunk_size():
    prompt, params = [i * 7 % 90 for i in range(131)], SamplingParams(max_tokens=3, logprobs=2)
    expected = alone(prompt, params)
    for chunk in range(1, 131):
        engine = fake_engine()
        engine.scheduler.limits.max_chunk = chunk
        engine.add_request("x", prompt, params)
        answers = Answers()
        while engine.has_unfinished():
            answers.add(engine.step())
        assert answers.of("x") == expected, chunk
        assert len(engine.runner.batches[0].input_ids) == chunk


def test_a_scored_token_has_the_logits_it_was_generated_with():
    """Prefill then decode against one whole prefill of the same tokens: equal digests."""
    prompt = [5, 6, 7]
    params = SamplingParams(max_tokens=20, ignore_eos=True, logprobs=0)
    _, ids, logprobs, _, _ = alone(prompt, params)
    one = SamplingParams(max_tokens=1, ignore_eos=True, logprobs=0)
    for count in range(len(ids)):
        _, [token], [logprob], _, _ = alone(prompt + ids[:count], one)
        assert (token, logprob) == (ids[count], logprobs[count])


def test_stop_token_is_in_the_ids_and_the_digest_but_not_in_the_text():
    prompt, free = [1, 2], SamplingParams(max_tokens=30, ignore_eos=True)
    text, ids, *_ = alone(prompt, free)
    stop = next(t for i, t in enumerate(ids) if i >= 5 and t not in ids[:i] and t < 90)
    at = ids.index(stop)
    params = SamplingParams(max_tokens=30, ignore_eos=True, stop_token_ids=(stop,))
    cut_text, cut_ids, _, reason, digest = alone(prompt, params)
    assert cut_ids == ids[: at + 1]
    assert reason == "stop"
    assert chr(33 + stop) not in cut_text
    assert text.startswith(cut_text)
    whole = alone(prompt, SamplingParams(max_tokens=at + 1, ignore_eos=True))
    assert digest == whole[4]
