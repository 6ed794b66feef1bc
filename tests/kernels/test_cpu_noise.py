"""The sampler's noise (arithmetic contract, rule 7): its words, its range, its bound."""

import numpy as np
import pytest

from detinfer.kernels import reference_sampling
from detinfer.kernels.cpu import sampling as kernels
from detinfer.kernels.cpu.philox import fill_words, philox

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
    assert [f"{int(word):08x}" for word in philox(*parts)] == words.split()


def test_noise_is_finite_and_bounded_at_the_extreme_words():
    lowest, highest = (
        float(kernels.noise_of_word(np.uint32(word))) for word in (0x00000000, 0xFFFFFFFF)
    )
    assert -3 < lowest < 0
    assert 16 < highest < kernels.NOISE_MAX
    # The bound that prunes must hold for every word, whatever the last bits of log do.
    top = [kernels.noise_of_word(np.uint32((1 << 32) - 1 - (i << 9))) for i in range(4096)]
    assert max(top) == top[0]


def test_noise_depends_on_each_part_of_its_key():
    def noise(token=70000, seed=2**63 + 5, position=2**33 + 3):
        words = np.empty(1, np.uint32)
        fill_words(np.array([token]), np.uint64(seed), np.uint64(position), words)
        return float(kernels.noise_of_word(words[0]))

    varied = [
        noise(), noise(token=70001), noise(token=70004), noise(seed=2**63 + 4), noise(seed=5),
        noise(position=2**33 + 2), noise(position=3),
    ]  # fmt: skip
    assert len(set(varied)) == len(varied)
    assert noise() == float(reference_sampling.gumbel(2**63 + 5, 2**33 + 3, [70000])[0])


def test_words_of_many_tokens_are_the_reference_s():
    for count in (1, 15, 16, 17, 200):  # in vectors, and one by one
        tokens = np.random.default_rng(count).integers(0, 2**31, count)
        words = np.empty(count, np.uint32)
        fill_words(tokens, np.uint64(2**63 + 5), np.uint64(2**33 + 3), words)
        noise = [kernels.noise_of_word(word) for word in words]
        assert noise == reference_sampling.gumbel(2**63 + 5, 2**33 + 3, tokens).tolist()


def test_noise_never_reaches_what_it_is_said_not_to():
    """Words at and around each power of two, which is where the bound is closest."""
    rest = np.unique(np.clip([2**k + d for k in range(24) for d in range(-3, 4)], 0, 2**23 - 1))
    for word in ((2**23 - 1 - rest.astype(np.uint32)) << np.uint32(9)).tolist():
        noise = kernels.noise_of_word(np.uint32(word))
        assert kernels.may_reach(np.uint32(word), noise - np.float32(0.01))
    told = [kernels.may_reach(np.uint32(word), np.float32(9.0)) for word in range(0, 2**32, 2**20)]
    assert 0 < np.mean(told) < 0.01  # one in 8,000 reaches it
