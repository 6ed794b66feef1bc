"""Rule 7: the sampler equals the reference bit for bit, and no row sees another."""

import numpy as np
import pytest
import torch

from detinfer import sampling
from detinfer.engine.outputs import TokenLogprob
from detinfer.kernels import reference
from detinfer.kernels.cpu import sampling as kernels
from detinfer.params import SamplingParams
from detinfer.sampling import SamplingRow, rank, token_logprobs

NOTHING = np.empty(0, dtype=np.int64)


def row(seed=7, position=11, masked=(), **params):
    return SamplingRow(SamplingParams(**params), seed, position, np.array(masked, dtype=np.int64))


def choose(logits, rows):
    """The chosen token ids."""
    return sampling.choose(torch.from_numpy(logits), rows)[0]


def logits_of(rows, vocab, seed=0, scale=4.0):
    return np.random.default_rng(seed).normal(0, scale, (rows, vocab)).astype(np.float32)


# Random123's published known-answer vectors for philox4x32-10.
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "words"), PHILOX)
def test_philox_known_answers(counter, key, words):
    parts = [np.uint64(int(word, 16)) for word in (counter + " " + key).split()]
    assert [f"{int(word):08x}" for word in kernels.philox(*parts)] == words.split()


def test_noise_is_finite_and_bounded_at_the_extreme_words():
    lowest, highest = (
        float(kernels.noise_of_word(np.uint64(word))) for word in (0x00000000, 0xFFFFFFFF)
    )
    assert -3 < lowest < 0
    assert 16 < highest < kernels.NOISE_MAX
    # The bound that prunes must hold for every word, whatever the last bits of log do.
    top = [kernels.noise_of_word(np.uint64((1 << 32) - 1 - (i << 9))) for i in range(4096)]
    assert max(top) == top[0]


def test_noise_depends_on_each_part_of_its_key():
    def noise(token=70000, seed=2**63 + 5, position=2**33 + 3):
        return float(kernels.noise(np.uint64(token), np.uint64(seed), np.uint64(position)))

    varied = [
        noise(), noise(token=70001), noise(token=70004), noise(seed=2**63 + 4), noise(seed=5),
        noise(position=2**33 + 2), noise(position=3),
    ]  # fmt: skip
    assert len(set(varied)) == len(varied)
    assert noise() == float(reference.gumbel(2**63 + 5, 2**33 + 3, [70000])[0])


FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 5000},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 30.0])
def test_choice_equals_the_reference(filters, temperature):
    logits = logits_of(4, 257, seed=int(temperature * 10))
    logits[1] = np.round(logits[1])  # ties, also on the edge of every filter
    logits[2, ::2] = -0.0
    logits[2, 1::2] = 0.0
    rows = [
        row(seed=100 * i + 2**40, position=i, masked=masked, temperature=temperature, **filters)
        for i, masked in enumerate([(), (3, 9), (0,), (256,)])
    ]
    expected = [
        reference.sample(
            logits[i], temperature=temperature, seed=r.seed, position=r.position,
            masked=r.masked, **filters,
        )
        for i, r in enumerate(rows)
    ]  # fmt: skip
    assert choose(logits, rows) == expected


def test_choice_equals_the_reference_at_a_real_vocabulary():
    logits = logits_of(1, 49152, seed=5, scale=2.5)
    for seed in range(3):
        r = row(seed=seed, temperature=1.0)
        expected = reference.sample(logits[0], temperature=1.0, seed=seed, position=11)
        assert choose(logits, [r])[0] == expected


def test_greedy_takes_the_lowest_of_equal_logits_and_respects_the_mask():
    logits = np.zeros((3, 9), dtype=np.float32)
    logits[:, [2, 5]] = 1.0
    rows = [row(), row(masked=[2]), row(temperature=1e-6)]
    assert choose(logits, rows) == [2, 5, 2]


@pytest.mark.parametrize("filters", [{}, {"top_k": 6}])
def test_equal_sums_of_logit_and_noise_go_to_the_lowest_id(filters):
    # At 1e9 binary32 numbers lie 64 apart: no noise moves them.
    logits = np.full((1, 9), 1e9, dtype=np.float32)
    logits[0, :2] = 0
    assert choose(logits, [row(temperature=1.0, **filters)]) == [2]


def test_samples_follow_the_distribution():
    probabilities = np.array([0.5, 0.25, 0.15, 0.1])
    logits = np.log(probabilities).astype(np.float32)[None]
    draws = 4000
    counts = np.bincount(
        [int(choose(logits, [row(position=i, temperature=1.0)])[0]) for i in range(draws)],
        minlength=4,
    )
    # Chi-squared, three degrees of freedom: 16.27 is passed by chance once in a thousand.
    assert ((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum() < 16.27


def test_a_row_does_not_see_its_neighbours():
    logits = logits_of(8, 300)
    params = [
        {}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}, {"temperature": 2.0},
        {"temperature": 0.5, "top_p": 0.9}, {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0}, {"temperature": 0.8, "top_k": 50, "top_p": 0.5},
    ]  # fmt: skip
    rows = [row(seed=i, position=i, **p) for i, p in enumerate(params)]
    together = choose(logits, rows)
    alone = [int(choose(logits[i : i + 1], [rows[i]])[0]) for i in range(8)]
    backwards = choose(logits[::-1].copy(), rows[::-1])[::-1]
    assert together == alone == backwards


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_give_no_token_to_their_own_row_only(poison):
    logits = logits_of(4, 50)
    clean = choose(logits, [row(temperature=t) for t in (0, 1, 0, 1)])
    logits[[0, 1], 17] = poison
    chosen = choose(logits, [row(temperature=t) for t in (0, 1, 0, 1)])
    assert chosen == [-1, -1, *clean[2:]]


def test_overflow_by_the_temperature_gives_no_token():
    logits = np.full((2, 8), 3e38, dtype=np.float32)
    params = [{"temperature": 0.1, "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}]
    chosen = choose(logits, [row(**p) for p in params])
    assert chosen[0] == -1
    assert 0 <= chosen[1] < 8


@pytest.mark.parametrize("k", [0, 1, 7, 64, 1000])
def test_rank_is_a_stable_descending_sort(k):
    x = np.round(logits_of(1, 64)[0])
    x[:5] = [0.0, -0.0, -np.inf, 3.4e38, -3.4e38]
    assert rank(x, k).tolist() == np.argsort(-x, kind="stable")[: k or None].tolist()


def test_token_logprobs_are_those_of_the_raw_logits():
    logits = logits_of(3, 100)
    table = reference.log_softmax(logits)
    got = token_logprobs(torch.from_numpy(logits), [4, 5, -1], [2, None, 3])
    order = np.argsort(-logits[0], kind="stable")[:2].tolist()
    top = [(token, float(table[0, token])) for token in order]
    assert got == [TokenLogprob(4, float(table[0, 4]), top), None, None]
    assert token_logprobs(torch.from_numpy(logits), [4, 5, 6], [None] * 3) == [None] * 3


def test_checksums_are_pairs_of_plain_integers():
    logits = logits_of(2, 33)
    expected = [tuple(map(int, pair)) for pair in reference.checksum(logits)]
    assert sampling.choose(torch.from_numpy(logits), [row(), row()])[1] == expected
