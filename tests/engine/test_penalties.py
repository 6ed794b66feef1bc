"""Bias and penalties through the engine: a request's own tokens count, and no one else's."""

import numpy as np
import pytest
from fake_runner import VOCAB, FakeRunner, fake_engine

from detinfer.errors import RequestError
from detinfer.params import SamplingParams


class FlatRunner(FakeRunner):
    """Every logit is 1, so that the sampler alone decides."""

    def logits_of(self, history, batch):
        return np.ones(VOCAB, dtype=np.float32)


def outputs_of(requests, runner):
    """Token ids of each (prompt, params), run together."""
    engine = fake_engine(runner=runner)
    for i, (prompt, params) in enumerate(requests):
        engine.add_request(str(i), prompt, params)
    ids = [[] for _ in requests]
    while engine.has_unfinished():
        for output in engine.step():
            ids[int(output.request_id)] += output.token_ids
    return ids


def params(max_tokens=5, **options):
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, **options)


@pytest.mark.parametrize(
    ("prompt", "options", "expected"),
    [
        ([0, 2], {}, [0, 0, 0, 0, 0]),
        ([0, 2], {"presence_penalty": 0.5}, [0, 1, 2, 3, 4]),
        ([0, 2], {"frequency_penalty": 0.5}, [0, 1, 2, 3, 4]),
        ([0, 2], {"repetition_penalty": 2.0}, [1, 3, 4, 5, 6]),
        ([0, 2], {"logit_bias": {9: 1.25}, "frequency_penalty": 0.5}, [9, 9, 9, 0, 1]),
        ([0, 2], {"logit_bias": {9: 1.25}, "presence_penalty": 0.5}, [9, 9, 9, 9, 9]),
    ],
)
def test_each_parameter_counts_its_own_tokens(prompt, options, expected):
    assert outputs_of([(prompt, params(**options))], FlatRunner()) == [expected]


def test_penalised_requests_are_the_same_alone_and_together():
    penalties = [
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.8, "temperature": 0.7, "seed": 3},
        {"presence_penalty": 1.5, "logit_bias": {5: 3}},
        {},
    ]
    requests = [
        ([i, i + 1, 7] * (1 + 40 * i), params(30, **options)) for i, options in enumerate(penalties)
    ]
    alone = [outputs_of([request], FakeRunner())[0] for request in requests]
    assert outputs_of(requests, FakeRunner()) == alone


def test_a_bias_outside_the_vocabulary_is_refused():
    engine = fake_engine(runner=FakeRunner())
    engine.add_request("last", [1], params(logit_bias={VOCAB - 1: 1}))
    with pytest.raises(RequestError, match=f"token id {VOCAB}, expected 0..{VOCAB - 1}") as refusal:
        engine.add_request("beyond", [1], params(logit_bias={VOCAB: 1}))
    assert refusal.value.param == "logit_bias"
