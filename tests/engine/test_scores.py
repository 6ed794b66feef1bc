"""A score is that of the contract, whatever else is scored beside it."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from tiny_models import tokens
from tiny_runner import TinyModelRunner

from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.engine.llm import LLM
from detinfer.engine.request import NON_FINITE_STATES
from detinfer.engine.scoring import inner_products, scores
from detinfer.errors import RequestError
from detinfer.kernels import reference
from detinfer.testing import assert_same_bits

SIZES = [1, 7, 63, 64, 65, 130, 576, 4096]
PROMPTS = [tokens(size, seed=size) for size in (1, 9, 64, 150)]


def tiny(num_pages=80, **options):
    return LLM(engine=Engine(EngineConfig(), TinyModelRunner(num_pages, **options)))


def normalised(rows, size, seed=0):
    x = np.random.default_rng(seed).standard_normal((rows, size))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_a_sum_is_the_contracts_whoever_stands_beside_it(size):
    first, second = normalised(40, size, 1), normalised(40, size, 2)
    found = inner_products(first, second)
    assert_same_bits(found, reference.score(first, second))
    assert_same_bits(found, inner_products(second, first))
    for i in (0, 17, 39):
        assert_same_bits(found[i : i + 1], inner_products(first[i : i + 1], second[i : i + 1]))


@pytest.mark.parametrize("size", SIZES)
def test_a_sum_is_near_that_of_binary64(size):
    """Each product is rounded once, and then in as many additions as lanes are long and deep."""
    first, second = normalised(200, size, 3), normalised(200, size, 4)
    products = first.astype(np.float64) * second.astype(np.float64)
    roundings = 1 + math.ceil(size / 64) + 6
    bound = roundings * 2.0**-24 / (1 - roundings * 2.0**-24) * np.abs(products).sum(axis=1)
    assert (np.abs(inner_products(first, second) - products.sum(axis=1)) <= bound).all()


def test_another_order_is_found_out():
    """The control: NumPy's own sums, and those of a row that is cut in two."""
    first, second = normalised(200, 576, 1), normalised(200, 576, 2)
    products, found = first * second, inner_products(first, second)
    for other in (
        products.sum(axis=1),
        products[:, :288].sum(axis=1) + products[:, 288:].sum(axis=1),
        np.array([np.dot(*pair) for pair in zip(first, second, strict=True)]),
    ):
        assert (other != found).any()


def test_a_digest_is_of_both_vectors_and_the_score():
    first, second = normalised(1, 64, 1), normalised(3, 64, 2)
    for other, (score, digest) in zip(second, scores(first, second), strict=True):
        raw = first[0].tobytes() + other.tobytes() + np.float32(score).tobytes()
        assert digest == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_pair_alone_and_among_others_has_one_score(pooling, threads):
    llm = tiny()
    llm.engine.runner.threads = threads
    query, *rest = PROMPTS
    together = llm.score([query], rest, pooling=pooling)
    llm.engine.scheduler.limits.max_chunk = 50
    assert llm.score([query] * len(rest), rest, pooling=pooling) == together
    for other, expected in zip(rest, together, strict=True):
        assert tiny().score([query], [other], pooling=pooling) == [expected]
        one, two = (tiny().embed([ids], pooling=pooling)[0].vector for ids in (query, other))
        assert_same_bits(np.float32(expected.score), reference.score(one, two))
    assert len({one.digest for one in together}) == len(rest)


def test_a_text_is_like_itself_and_stock_kernels_are_told_apart():
    llm = tiny()
    [same] = llm.score("abc", "abc")
    assert abs(same.score - 1) < 1e-6
    assert (same.deterministic, same.system_fingerprint, same.error) == (True, "tiny", None)
    [fast] = llm.score("abc", "abc", deterministic=False)
    assert not fast.deterministic
    assert fast.digest != same.digest


@pytest.mark.parametrize(
    ("first", "second", "field", "message"),
    [
        ([], ["a"], "text_1", "got none, expected at least one"),
        (["a"], [], "text_2", "got none, expected at least one"),
        (["a", "b"], ["a"], "text_2", "got 1 for 2 of text_1, expected as many"),
        (["a", "b"], ["a", "b", "c"], "text_2", "got 3 for 2 of text_1, expected as many"),
    ],
)
def test_what_makes_no_pairs_is_refused_by_name(first, second, field, message):
    llm = tiny()
    with pytest.raises(RequestError, match=f"^{field}: {message}") as caught:
        llm.score(first, second)
    assert caught.value.param == field
    assert not llm.engine.has_unfinished()


def test_states_that_are_no_numbers_end_their_pair_alone():
    llm = tiny()
    forward = llm.engine.runner.forward

    def poisoned(batch):
        logits = forward(batch)
        bad = torch.from_numpy(batch.input_ids[batch.hidden_rows] == 77)
        llm.engine.runner.hidden = torch.where(bad[:, None], torch.nan, llm.engine.runner.hidden)
        return logits

    llm.engine.runner.forward = poisoned
    bad, good = llm.score([[1, 2, 3]], [[1, 77, 2], [4, 5]])
    assert math.isnan(bad.score)
    assert (bad.error, bad.digest) == (NON_FINITE_STATES, "")
    assert (good.error, math.isfinite(good.score)) == (None, True)
