"""Answers are compared to the last bit, log-probabilities apart from digests."""

import dataclasses
import io

import leaks
import pytest
from fake_runner import FakeRunner, fake_engine
from rich.console import Console

from detinfer import ops
from detinfer.check import Answer, Check, EngineSubject, ExactLogprob, Target
from detinfer.check.display import print_result
from detinfer.check.page import render_page
from detinfer.params import SamplingParams

ASKING = Target("ABC", SamplingParams(max_tokens=6, logprobs=2), "log-probabilities")
GIVEN = [(5, -0.25, [(5, -0.25), (7, -1.5)]), (6, -0.0, [])]
ANSWER = Answer((5, 6), "ab", "length", "d", tuple(ExactLogprob.of(*one) for one in GIVEN))


def check(engine, target=ASKING, runs=40):
    return Check(EngineSubject(engine), [target], runs=runs, seed=5).run()


def changed(place, **fields):
    names = ("token_id", "logprob", "top")
    exact = list(ANSWER.logprobs)
    exact[place] = ExactLogprob.of(**{**dict(zip(names, GIVEN[place], strict=True)), **fields})
    return dataclasses.replace(ANSWER, logprobs=tuple(exact))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (changed(1, logprob=0.0), "the log-probabilities from token 2 on do not"),
        (changed(1, logprob=float("nan")), "the log-probabilities from token 2 on do not"),
        (changed(0, logprob=-0.25000000000000006), "from token 1 on"),
        (changed(0, top=[(5, -0.25), (8, -1.5)]), "from token 1 on"),
        (changed(0, top=[(5, -0.25)]), "from token 1 on"),
        (dataclasses.replace(ANSWER, logprobs=None), "from token 1 on"),
        (dataclasses.replace(ANSWER, digest="e"), "the tokens agree, the logits do not"),
        (dataclasses.replace(ANSWER, text="a", digest="e"), "the text and the logits do not"),
        (dataclasses.replace(ANSWER, finish_reason="stop"), "the tokens agree, the end do"),
        (dataclasses.replace(ANSWER, token_ids=(5,)), "token 2 of the answer is the first"),
    ],
)
def test_any_bit_makes_another_answer(other, words):
    assert other != ANSWER
    assert words in ANSWER.difference(other)


def test_equal_bits_are_equal_even_of_nan():
    nan = changed(0, logprob=float("nan"))
    assert nan == changed(0, logprob=float("nan"))
    assert changed(0) == ANSWER


def test_log_probabilities_are_part_of_an_answer():
    [prompt] = check(fake_engine()).prompts
    assert [one.token_id for one in prompt.expected.logprobs] == list(prompt.expected.token_ids)
    assert all(len(one.top) == 2 for one in prompt.expected.logprobs)
    told = prompt.to_json()
    assert told["name"] == "log-probabilities"
    assert float.fromhex(told["expected"]["logprobs"][0]["logprob"]) < 0


def test_wrong_log_probabilities_of_right_logits_are_found_and_told(monkeypatch):
    right = ops.log_softmax
    monkeypatch.setattr(ops, "log_softmax", lambda x: right(x) * (1 + 2**-23 * (len(x) > 1)))
    result = check(fake_engine())
    assert not result.reproducible
    assert (result.unique_digests, result.unique_outputs) == (1, 2)
    assert result.first_divergence.what == (
        "the tokens agree, the log-probabilities from token 1 on do not"
    )
    out = io.StringIO()
    print_result(Console(file=out, width=120), result)
    assert "the tokens agree, the log-probabilities from token 1 on do not" in out.getvalue()
    assert "not reproducible: up to 2 distinct answers to one prompt" in out.getvalue()
    assert "log-probabilities from token 1 on do not." in render_page(result)
    assert result.to_json()["first_divergence"]["what"] == result.first_divergence.what
    # Without log-probabilities there is nothing to see.
    silent = dataclasses.replace(ASKING, params=SamplingParams(max_tokens=6))
    assert check(fake_engine(), silent).reproducible


def test_a_leak_beyond_512_keys_needs_a_long_prompt():
    def engine(kind=leaks.Far):
        return fake_engine(runner=kind(num_pages=200, max_model_len=800))

    long = Target(tuple(range(90)) * 6, SamplingParams(max_tokens=4))
    assert not check(engine(), long).reproducible
    assert check(engine()).reproducible
    assert check(
        fake_engine(runner=FakeRunner(num_pages=200, max_model_len=800)), long
    ).reproducible
