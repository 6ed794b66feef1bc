"""A prompt's vector is that of the contract, whatever else the engine does meanwhile."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import VOCAB, make_batch, tokens
from tiny_runner import TinyModelRunner

from detinfer.config import EngineConfig
from detinfer.engine import pooling
from detinfer.engine.engine import Engine
from detinfer.engine.llm import LLM
from detinfer.engine.request import NON_FINITE_STATES
from detinfer.errors import RequestError
from detinfer.kernels import reference
from detinfer.params import PoolingParams, SamplingParams
from detinfer.testing import assert_same_bits

PROMPT = tokens(150, seed=5)
PARAMS = [
    PoolingParams(),
    PoolingParams("last"),
    PoolingParams(normalize=False),
    PoolingParams("last", normalize=False, dimensions=7),
    PoolingParams(dimensions=63),
]


def tiny(num_pages=40, **options):
    return Engine(EngineConfig(), TinyModelRunner(num_pages, **options))


def drive(engine):
    """Every request's last output, by its id."""
    ended = {}
    while engine.has_unfinished():
        ended |= {one.request_id: one for one in engine.step() if one.finish_reason is not None}
    return ended


def embedded(engine, prompt=PROMPT, params=PARAMS[0]):
    engine.add_request("x", prompt, params)
    output = drive(engine)["x"]
    assert output.finish_reason == "stop", output.error
    return np.frombuffer(output.embedding, "<f4")


def reference_of(model, prompt, params):
    """The contract's, of the states that the model's own modules give for the prompt at once."""
    runner = TinyModelRunner(40, plan="modules", model=model)
    batch = make_batch([(prompt, 0, [3, 1, 4])])
    every, none = batch.logit_rows, np.empty(0, np.int32)
    runner.forward(replace(batch, logit_rows=none, hidden_rows=every))
    states = runner.hidden.numpy()
    return reference.embedding(states, params.pooling, params.normalize, params.dimensions)


@pytest.mark.parametrize("model", ["windowed", "experts-3", "packed"])
@pytest.mark.parametrize("plan", ["fused", "modules"])
def test_a_vector_is_the_contracts(model, plan):
    if (model, plan) == ("experts-3", "fused"):
        plan = "modules"  # it has no other
    for params in PARAMS:
        found = embedded(tiny(model=model, plan=plan), params=params)
        assert_same_bits(found, reference_of(model, PROMPT, params), f"{params}")
        if params.normalize:
            assert abs(float(np.linalg.norm(found.astype(np.float64))) - 1) < 1e-6


def test_states_do_not_touch_the_logits_of_their_step():
    """Logits and states of one step are those of steps of their own."""
    for plan in ("fused", "modules"):
        for model in ("windowed", "packed"):
            whole = make_batch([(tokens(70, 1), 0, [3, 5]), (tokens(9, 2), 0, [7])])
            rows = whole.logit_rows
            mixed = replace(whole, logit_rows=rows[70:], hidden_rows=rows[:70])
            states = replace(whole, logit_rows=rows[:0], hidden_rows=rows)
            runner = TinyModelRunner(12, plan=plan, model=model)
            logits = runner.forward(whole).clone()
            assert_same_bits(runner.forward(mixed).clone(), logits[70:])
            own = runner.hidden.clone()
            runner.forward(states)
            assert_same_bits(own, runner.hidden[:70])


@pytest.fixture(scope="module", params=PARAMS[:2], ids=["mean", "last"])
def alone(request):
    return request.param, embedded(tiny(), params=request.param)


@pytest.mark.parametrize("chunk", [1, 7, 63, 64, 65, 149])
def test_chunks_do_not_change_a_vector(alone, chunk):
    params, expected = alone
    engine = tiny()
    engine.scheduler.limits.max_chunk = chunk
    assert_same_bits(embedded(engine, params=params), expected)


def test_a_sum_of_each_chunks_sum_is_found_out(alone, monkeypatch):
    """The control: what most servers do."""
    params, expected = alone

    def add(self, states):
        if len(states):
            total = states.sum(axis=0)
            self._total = total if self._total is None else self._total + total
        self._next += len(states)

    monkeypatch.setattr(pooling.Pool, "add", add)
    engine = tiny()
    engine.scheduler.limits.max_chunk = 63
    same = np.array_equal(embedded(engine, params=params), expected)
    assert same == (params.pooling == "last")


@pytest.mark.parametrize("count", [1, 8, 32])
def test_a_vector_among_others_is_the_same(alone, count):
    params, expected = alone
    rng = random.Random(count)
    engine = tiny(num_pages=200)
    for i in range(count - 1):
        prompt = tokens(rng.choice([1, 9, 64, 130]), seed=i)
        generate = SamplingParams(max_tokens=rng.randint(1, 30), ignore_eos=True)
        engine.add_request(str(i), prompt, rng.choice([generate, *PARAMS]))
    engine.add_request("x", PROMPT, params)
    ended = drive(engine)
    assert len(ended) == count
    assert_same_bits(np.frombuffer(ended["x"].embedding, "<f4"), expected)


def test_an_answer_beside_vectors_is_the_same():
    answers = []
    for beside in (0, 9):
        engine = tiny(num_pages=200)
        for i in range(beside):
            engine.add_request(str(i), tokens(40 + i, seed=i), PARAMS[i % len(PARAMS)])
        params = SamplingParams(max_tokens=60, temperature=0.8, seed=3, ignore_eos=True)
        engine.add_request("x", PROMPT, params)
        answers.append(drive(engine)["x"].digest)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_a_vector(alone, threads):
    params, expected = alone
    engine = tiny()
    engine.runner.threads = threads
    assert_same_bits(embedded(engine, params=params), expected)


def test_stock_kernels_are_told_apart(alone):
    """The control of all that stands above: one bit of one state shows."""
    params, expected = alone
    fast = PoolingParams(params.pooling, deterministic=False)
    assert not np.array_equal(embedded(tiny(), params=fast), expected)


def test_a_warm_cache_is_read_where_no_state_is_lost_by_it(alone):
    params, expected = alone
    engine = tiny()
    engine.add_request("before", PROMPT, SamplingParams(max_tokens=1))
    drive(engine)
    assert_same_bits(embedded(engine, params=params), expected)
    assert (engine.stats()["prefix_hits"] > 0) == (params.pooling == "last")


def test_a_vectors_pages_warm_the_cache_of_answers():
    generate = SamplingParams(max_tokens=20, ignore_eos=True)
    [cold] = LLM(engine=tiny()).generate([PROMPT], generate)
    llm = LLM(engine=tiny())
    llm.embed([PROMPT])
    assert llm.generate([PROMPT], generate) == [cold]
    assert llm.engine.stats()["prefix_hits"] == 2


def test_a_prompt_sent_back_to_wait_is_pooled_once(alone):
    params, expected = alone
    engine = tiny(num_pages=6)
    engine.scheduler.limits.max_chunk = 50
    long = SamplingParams(max_tokens=150, ignore_eos=True)
    engine.add_request("old", tokens(60, seed=1), long)
    engine.add_request("older", tokens(60, seed=2), long)
    engine.add_request("x", PROMPT, params)
    ended = drive(engine)
    assert engine.stats()["preemptions"] > 0
    assert_same_bits(np.frombuffer(ended["x"].embedding, "<f4"), expected)


def test_no_logits_are_computed_for_a_vector():
    engine = tiny()
    wanted = []
    forward = engine.runner.forward
    engine.runner.forward = lambda batch: (
        wanted.append((len(batch.logit_rows), len(batch.hidden_rows))) or forward(batch)
    )
    LLM(engine=engine).embed([PROMPT, PROMPT], pooling="last")
    assert wanted == [(0, 2)]


def test_the_face_gives_a_vector_a_prompt_in_order():
    llm = LLM(engine=tiny())
    answers = llm.embed([[5, 6], PROMPT, [7]], dimensions=16)
    assert [one.prompt_token_ids for one in answers] == [[5, 6], PROMPT, [7]]
    for one in answers:
        assert one.vector.shape == (16,)
        assert one.vector.dtype == np.float32
        assert one.digest == hashlib.sha256(one.vector.astype("<f4").tobytes()).hexdigest()
        assert (one.finish_reason, one.error, one.deterministic) == ("stop", None, True)
        assert one.system_fingerprint == "tiny"
        [again] = llm.embed([one.prompt_token_ids], dimensions=16)
        assert again.digest == one.digest
    assert len({one.digest for one in answers}) == 3
    [by_text] = llm.embed("abc")
    assert by_text.prompt_token_ids == [64, 65, 66]
    assert llm.embed([]) == []


def test_the_longest_prompt_needs_no_room_for_an_answer():
    engine = tiny()
    longest = engine.info.max_model_len
    embedded(engine, tokens(longest, seed=1))
    with pytest.raises(RequestError, match=f"maximum context length is {longest} tokens"):
        engine.add_request("x", tokens(longest + 1, seed=1), PoolingParams())
    small = tiny(num_pages=2)
    embedded(small, tokens(128, seed=1))
    with pytest.raises(RequestError, match="maximum context length is 128 tokens"):
        small.add_request("x", tokens(129, seed=1), PoolingParams())


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("pooling", {"pooling": "max"}),
        ("normalize", {"normalize": 1}),
        ("dimensions", {"dimensions": 0}),
        ("dimensions", {"dimensions": 65}),
        ("dimensions", {"dimensions": True}),
        ("deterministic", {"deterministic": None}),
    ],
)
def test_what_cannot_be_is_refused_by_name(field, options):
    llm = LLM(engine=tiny())
    with pytest.raises(RequestError, match=f"^{field}: got") as caught:
        llm.embed([PROMPT], **options)
    assert caught.value.param == field
    assert not llm.engine.has_unfinished()


def test_states_that_are_no_numbers_end_their_request_alone(caplog):
    engine = tiny()
    forward = engine.runner.forward

    def poisoned(batch):
        logits = forward(batch)
        bad = torch.from_numpy(batch.input_ids[batch.hidden_rows] == 77)
        engine.runner.hidden = torch.where(bad[:, None], torch.nan, engine.runner.hidden)
        return logits

    engine.runner.forward = poisoned
    bad, good = LLM(engine=engine).embed([[1, 77, 2], [1, 2, 3]])
    assert (bad.finish_reason, bad.error, bad.vector.size) == ("error", NON_FINITE_STATES, 0)
    assert good.finish_reason == "stop"
    assert engine.stats()["free_pages"] == engine.stats()["num_pages"]
    engine.check_integrity()


def test_a_prompts_vocabulary_is_judged():
    with pytest.raises(RequestError, match=f"prompt: got token id {VOCAB}"):
        tiny().add_request("x", [VOCAB], PoolingParams())
