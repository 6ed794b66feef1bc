"""The oracle of sampling and checksums: against published vectors, a distribution and integers."""

from __future__ import annotations

import numpy as np
import pytest

from detinfer.kernels import reference_sampling as reference
from detinfer.kernels.reference import log32
from detinfer.testing import assert_same_bits, same_bits

F32 = np.float32


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    assert tuple(reference.philox4x32(counter, key)) == words


def test_noise_is_finite_at_every_extreme_word():
    u = reference.uniform([0, 1, 511, 512, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
    assert ((u > 0) & (u < 1)).all()
    assert (u[0], u[-1]) == (2.0**-24, 1 - 2.0**-24)
    assert np.isfinite(-log32(-log32(u))).all()


def test_gumbel_depends_on_seed_position_and_token_alone():
    noise = reference.gumbel(2**40 + 3, 2**33 + 1, range(9))
    assert_same_bits(reference.gumbel(2**40 + 3, 2**33 + 1, [8, 2]), noise[[8, 2]])
    for seed, position in ((3, 2**33 + 1), (2**40 + 3, 1), (2**40 + 4, 2**33 + 1)):
        assert not same_bits(reference.gumbel(seed, position, range(9)), noise)
    assert len(set(noise.tolist())) == 9


def test_sampling_follows_the_distribution():
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], F32))
    draws = [reference.sample(logits, temperature=1.0, seed=11, position=p) for p in range(4000)]
    counts = np.bincount(draws, minlength=4)
    expected = 4000 * np.exp(logits.astype(np.float64))
    # 16.27 is the 99.9th percentile of chi-square with three degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 16.27


def test_sampling_filters_keep_what_the_contract_says():
    logits = np.array([1.0, 3.0, 3.0, 0.5, 2.0], F32)  # in order: 1, 2, 4, 0, 3

    def reachable(**options):
        return {
            reference.sample(logits, temperature=9.0, seed=s, position=7, **options)
            for s in range(200)
        }

    assert reachable() == {0, 1, 2, 3, 4}
    assert reachable(top_k=1) == {1}
    assert reachable(top_k=3) == {1, 2, 4}
    assert reachable(top_p=1e-9) == {1}
    assert reachable(top_k=2, top_p=0.5) == {1}  # the first of two equals is exactly half
    assert reachable(min_p=1.0) == {1, 2}
    assert reachable(masked=[1, 2], top_k=1) == {4}
    assert reference.sample(logits, temperature=0.0) == 1
    assert reference.sample(logits, temperature=0.0, masked=[1]) == 2


def test_argmax_takes_the_lowest_id_and_refuses_what_is_no_number():
    logits = np.array([[1, 3, 3, 2], [0, -0.0, 0, 0], [1, np.nan, 0, 0], [np.inf, 0, 0, 0],
                       [-np.inf, 5, 6, 6], [-np.inf] * 4], F32)  # fmt: skip
    assert reference.argmax(logits).tolist() == [1, 0, -1, -1, 2, -1]


def test_checksum_is_the_integer_formula():
    mask = 2**64 - 1

    def splitmix(z):
        z = (z + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        return z ^ z >> 31

    assert splitmix(0) == 0xE220A8397B1DCDAF  # the published first output of seed 0
    logits = np.array([[0.0, -0.0, 1.5, np.nan]], F32)
    words = [0, 0x80000000, 0x3FC00000, 0x7FC00000]
    for column, key in enumerate((0x243F6A8885A308D3, 0x13198A2E03707344)):
        total = sum(splitmix((w + (i << 32) + key) & mask) for i, w in enumerate(words)) & mask
        assert int(reference.checksum(logits)[0, column]) == total
    swapped = logits[:, [1, 0, 2, 3]]
    assert not same_bits(reference.checksum(swapped), reference.checksum(logits))
