"""A prompt's log-probabilities are the very floats that generating it gave."""

import random

import pytest
from fake_runner import FakeRunner, fake_engine

from detinfer.config import EngineConfig
from detinfer.engine.llm import LLM
from detinfer.engine.request import NON_FINITE
from detinfer.params import SamplingParams

PROMPT = [3, 1, 4, 1, 5]
GENERATE = SamplingParams(max_tokens=140, ignore_eos=True, logprobs=3, temperature=0.9, seed=1)
SCORE = SamplingParams(max_tokens=1, ignore_eos=True, prompt_logprobs=3)


def generated():
    [answer] = LLM(engine=fake_engine()).generate([PROMPT], GENERATE)
    return PROMPT + answer.token_ids, answer.logprobs


def scores(engine, ids, params=SCORE):
    [answer] = LLM(engine=engine).generate([ids], params)
    assert len(answer.prompt_logprobs) == len(ids) - 1
    assert [one.token_id for one in answer.prompt_logprobs] == ids[1:]
    return answer.prompt_logprobs


def test_scoring_a_generated_text_returns_the_floats_of_its_generation():
    ids, logprobs = generated()
    assert scores(fake_engine(), ids)[len(PROMPT) - 1 :] == logprobs


@pytest.mark.parametrize("chunk", [1, 7, 63, 64, 65, 144])
def test_chunks_do_not_change_scores(chunk):
    ids, logprobs = generated()
    engine = fake_engine()
    engine.scheduler.limits.max_chunk = chunk
    assert scores(engine, ids)[len(PROMPT) - 1 :] == logprobs


def test_a_warm_cache_is_not_read_and_not_needed():
    ids, _ = generated()
    engine = fake_engine()
    LLM(engine=engine).generate([ids], SamplingParams(max_tokens=1))
    assert scores(engine, ids) == scores(fake_engine(), ids)
    assert engine.stats()["prefix_hits"] == 0


def test_a_preempted_prompt_is_scored_once():
    ids, _ = generated()
    expected = scores(fake_engine(), ids)
    engine = fake_engine(EngineConfig(), FakeRunner(num_pages=6))
    engine.scheduler.limits.max_chunk = 50
    long = SamplingParams(max_tokens=200, ignore_eos=True)
    engine.add_request("old", [7] * 60, long)
    engine.add_request("older", [8] * 60, long)
    engine.add_request("scored", ids, SamplingParams(
        max_tokens=90, ignore_eos=True, prompt_logprobs=3))  # fmt: skip
    found = []
    while engine.has_unfinished():
        for output in engine.step():
            if output.prompt_logprobs is not None:
                found.append(list(output.prompt_logprobs))
    assert engine.stats()["preemptions"] > 0
    assert found == [expected]


def test_neighbours_may_ask_or_not():
    rng = random.Random(0)
    prompts = [[rng.randrange(90) for _ in range(size)] for size in (2, 70, 130)]
    params = [SCORE, SamplingParams(max_tokens=5, ignore_eos=True), SCORE]
    answers = LLM(engine=fake_engine()).generate(prompts, params)
    for prompt, one, answer in zip(prompts, params, answers, strict=True):
        [alone] = LLM(engine=fake_engine()).generate([prompt], one)
        assert answer == alone
        assert (answer.prompt_logprobs is None) == (one.prompt_logprobs is None)


def test_a_prompt_of_one_token_has_nothing_to_score():
    [answer] = LLM(engine=fake_engine()).generate([[5]], SCORE)
    assert answer.prompt_logprobs == []


def test_a_step_scores_no_more_than_its_limit_and_everyone_gets_on():
    ids, _ = generated()
    expected = scores(fake_engine(), ids)
    engine = fake_engine()
    engine.scheduler.limits.max_scored = 10
    most = []
    forward = engine.runner.forward
    engine.runner.forward = lambda batch: most.append(len(batch.logit_rows)) or forward(batch)
    answers = LLM(engine=engine).generate([ids, ids, "abc"], [SCORE, SCORE, GENERATE])
    assert [answer.prompt_logprobs for answer in answers] == [expected, expected, None]
    assert max(most) <= 10 + 3 * 17  # and a choice of each request, drafts included


def test_a_prompt_whose_score_is_not_finite_ends_alone():
    class Poisoned(FakeRunner):
        """NaN logits after token 77, wherever it stands."""

        def forward(self, batch):
            logits = super().forward(batch)
            for row, place in enumerate(batch.logit_rows):
                if batch.input_ids[place] == 77:
                    logits[row] = float("nan")
            return logits

    engine = fake_engine(runner=Poisoned())
    bad, good = LLM(engine=engine).generate([[1, 77, 2, 3], [1, 2, 3]], SCORE)
    assert (bad.finish_reason, bad.error) == ("error", NON_FINITE)
    assert good.finish_reason == "length"
    assert not engine.has_unfinished()
    assert engine.stats()["free_pages"] == engine.stats()["num_pages"]
