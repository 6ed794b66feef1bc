"""Where other engines' determinism broke, one test each, on a real model and its real kernels.

What the kernels' own tests cover (extreme noise words, guard bands, TF32) is not repeated here.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
from scale import ALONE, run
from tiny_models import tokens
from tiny_runner import TinyModelRunner

from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.params import SamplingParams

PROMPT = tokens(131, seed=0)
PARAMS = SamplingParams(max_tokens=4, ignore_eos=True, logprobs=2)
LOUD = 89


def answers(runner, requests, max_chunk=None, engine=None):
    """The answers of requests that are added together, by name."""
    config = EngineConfig(max_num_seqs=300, max_num_batched_tokens=5000)
    return run(engine or Engine(config, runner), requests, max_chunk)


def alone(runner, prompt=PROMPT, params=PARAMS):
    return answers(runner, {"x": (prompt, params)}, engine=Engine(ALONE, runner))["x"]


def beside(runner, neighbours, prompt=PROMPT):
    """The answer of a request in the middle of neighbours."""
    some = {f"n{i}": (ids, PARAMS) for i, ids in enumerate(neighbours)}
    before = dict(list(some.items())[: len(some) // 2])
    return answers(runner, {**before, "x": (prompt, PARAMS), **some})["x"]


def small_runner():
    return TinyModelRunner(num_pages=12)


def test_neighbours_of_every_length():
    """Failure 1: the attention tile followed the longest query of the batch."""
    runner = small_runner()
    expected = alone(runner)
    for length in range(1, 131):
        assert beside(runner, [tokens(length, seed=length)]) == expected, length


@pytest.mark.parametrize("rows", [255, 256, 257, 1024, 4097])
def test_steps_of_many_rows(rows):
    """Failure 2: the norm's block size followed the rows of the step."""
    runner = TinyModelRunner(num_pages=100)
    expected = alone(runner)
    left, neighbours = rows - len(PROMPT), []
    while left:
        neighbours.append(tokens(min(left, 200), seed=left))
        left -= len(neighbours[-1])
    batches = []
    forward = runner.forward
    runner.forward = lambda batch: batches.append(batch) or forward(batch)
    assert beside(runner, neighbours) == expected
    assert len(batches[0].input_ids) == rows


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 130])
def test_many_short_neighbours(count):
    """Failure 3: the attention tile followed the summed query length."""
    runner = TinyModelRunner(num_pages=140)
    short = [tokens(1 + i % 3, seed=i) for i in range(count)]
    assert beside(runner, short) == alone(runner)


def test_a_neighbour_ten_thousand_times_larger():
    """Failure 5: one quantisation scale for the whole batch."""
    runner = TinyModelRunner(num_pages=12, loud=LOUD)
    quiet = [token for token in PROMPT if token != LOUD]
    loud = [LOUD, *tokens(20, seed=1), LOUD]
    assert beside(runner, [loud, loud], quiet) == alone(runner, quiet)


def test_every_chunk_size():
    """Failure 8: chunk boundaries that are not those of the blocks of keys."""
    runner = small_runner()
    expected = alone(runner)
    for chunk in range(1, 131):
        got = answers(runner, {"x": (PROMPT, PARAMS)}, max_chunk=chunk)["x"]
        assert got == expected, chunk


def test_a_warm_cache_at_every_shared_length():
    """Failure 9: a prefix from the cache gave other bits than one computed cold."""
    runner = small_runner()
    first, tail = tokens(150, seed=2), tokens(40, seed=3)
    hits = 0
    for shared in range(151):
        prompt = [*first[:shared], *tail]
        engine = Engine(EngineConfig(), runner)
        answers(runner, {"first": (first, PARAMS)}, engine=engine)
        warm = answers(runner, {"x": (prompt, PARAMS)}, engine=engine)["x"]
        hits += engine.stats()["prefix_hits"]
        assert warm == alone(runner, prompt), shared
    assert hits == 64 + 2 * 23  # one page from 64 shared tokens on, two from 128 on


@pytest.mark.parametrize("count", [0, 1, 31])
def test_fast_neighbours(count):
    """A step with one deterministic row is a deterministic step, whoever else is in it."""
    runner = TinyModelRunner(num_pages=100)
    params = replace(PARAMS, max_tokens=20)
    expected = alone(runner, PROMPT, params)
    modes = []
    forward = runner.forward
    runner.forward = lambda batch: modes.append(batch.deterministic) or forward(batch)
    rng = random.Random(count)
    fast = replace(PARAMS, max_tokens=30, deterministic=False)
    crowd = {f"n{i}": (tokens(rng.randint(1, 150), seed=i), fast) for i in range(count)}
    assert answers(runner, {**crowd, "x": (PROMPT, params)})["x"] == expected
    assert modes.count(False) >= (
        10 if count else 0
    )  # the neighbours go on after it, in fast steps


def test_five_repeats_among_44():
    """Failure 13: three outputs in five repeats at about 44 resident sequences."""
    runner = TinyModelRunner(num_pages=200)
    params = SamplingParams(max_tokens=30, temperature=0.8, seed=7, ignore_eos=True, logprobs=0)
    expected = alone(runner, PROMPT, params)
    for repeat in range(5):
        rng = random.Random(repeat)
        crowd = {f"n{i}": (tokens(rng.randint(1, 150), seed=i), PARAMS) for i in range(43)}
        assert answers(runner, {**crowd, "x": (PROMPT, params)})["x"] == expected


def test_a_generated_token_has_the_log_probabilities_of_a_prompts_last():
    """Failure 14: decode and prefill disagreed."""
    runner = small_runner()
    whole = alone(runner, PROMPT, SamplingParams(max_tokens=40, ignore_eos=True, logprobs=3))
    one = SamplingParams(max_tokens=1, ignore_eos=True, logprobs=3)
    for count, logprob in enumerate(whole.logprobs):
        prefilled = alone(runner, PROMPT + whole.token_ids[:count], one)
        assert prefilled.logprobs == [logprob], count


def test_any_order_of_arrival():
    """Failure 18: the order of a batch came from a set."""
    runner = TinyModelRunner(num_pages=20)
    requests = {f"r{i}": (tokens(10 + 20 * i, seed=i), PARAMS) for i in range(6)}
    expected = {name: alone(runner, *request) for name, request in requests.items()}
    for seed in range(10):
        order = random.Random(seed).sample(list(requests.items()), 6)
        assert answers(runner, dict(order)) == expected


def test_a_last_bit_that_follows_the_neighbours_is_found_by_these_comparisons():
    """Failure 19: tests that compared nothing. This one fails what the tests above compare."""
    runner = small_runner()
    forward = runner.forward

    def leaky(batch):
        logits = forward(batch)
        if len(batch.query_start) > 2 or len(batch.input_ids) not in (1, len(PROMPT)):
            logits.numpy().view(np.int32)[:, 7] ^= 1
        return logits

    runner.forward = leaky
    expected = alone(runner)
    assert beside(runner, [tokens(9, seed=9)]) != expected
    assert answers(runner, {"x": (PROMPT, PARAMS)}, max_chunk=64)["x"] != expected
    assert answers(runner, {"x": (PROMPT, PARAMS)})["x"] == expected
