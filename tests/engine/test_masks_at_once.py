"""Masks made for several requests at once are those that each makes alone."""

import random

import numpy as np
from walks import BYTES, compiled, compiler

from detinfer.engine.constraint import make_next_masks
from detinfer.params import SamplingParams

PATTERNS = ["[a-c]+x", "(yes|no)!", '"[^"]*"', "[0-9]{1,3}(\\.[0-9]+)?", "a?b?c?d"]


def bits(mask):
    return np.unpackbits(mask, bitorder="little")[:BYTES].tolist()


def test_masks_made_at_once_are_those_made_alone_token_by_token():
    by, rng = compiler(), random.Random(7)
    together, alone = (
        [compiled(by, SamplingParams(regex=one)) for one in PATTERNS] for _ in range(2)
    )
    for _ in range(6):
        make_next_masks(together, BYTES)
        for one, other in zip(together, alone, strict=True):
            [made], [expected] = one.masks([]), other.masks([])
            assert bits(made) == bits(expected)
            allowed = np.flatnonzero(bits(expected)).tolist()
            token = rng.choice(allowed)
            one.take(token)
            other.take(token)


def test_a_mask_made_before_a_token_is_not_of_what_comes_after():
    by = compiler()
    one, other = (compiled(by, SamplingParams(regex="ab")) for _ in range(2))
    make_next_masks([one, other], BYTES)
    one.take(ord("a"))
    assert np.flatnonzero(bits(one.masks([])[0])).tolist() == [ord("b")]
    assert np.flatnonzero(bits(other.masks([])[0])).tolist() == [ord("a")]


def test_one_that_fails_lets_nothing_follow_and_others_go_on():
    by = compiler()
    one, other = (compiled(by, SamplingParams(regex="ab")) for _ in range(2))
    one.take(ord("z"))
    assert one.failure
    make_next_masks([one, other], BYTES)
    assert not any(bits(one.masks([])[0]))
    assert np.flatnonzero(bits(other.masks([])[0])).tolist() == [ord("a")]
