"""Rules 7, 8 and 9b in plain NumPy: which token is chosen, noise, and the checksum of logits.

Written from docs/arithmetic.md, rule by rule, and from nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from detinfer.kernels import constants as c
from detinfer.kernels.reference import F32, Array, exp32, log32

_ieee = np.errstate(all="ignore")


# Rule 7


def argmax(logits: Array) -> npt.NDArray[np.int64]:
    """Lowest id of the largest logit; -1 for a row with a NaN or +Inf, or of -Inf. [L, V] -> [L].

    A logit of -Inf is that of a token which is never chosen.
    """
    # A maximum is NaN where a value is.
    return np.where(np.isfinite(logits.max(axis=-1)), logits.argmax(axis=-1), -1)


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox 4x32-10: four words of counter and two of key give four random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c.PHILOX_M0 * c0, c.PHILOX_M1 * c2
        low0, low1 = p0 & 0xFFFFFFFF, p1 & 0xFFFFFFFF
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, low1, (p0 >> 32) ^ c3 ^ k1, low0
        k0, k1 = (k0 + c.PHILOX_W0) & 0xFFFFFFFF, (k1 + c.PHILOX_W1) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def uniform(words: npt.ArrayLike) -> Array:
    """32-bit words as binary32 numbers strictly between 0 and 1."""
    words = np.asarray(words, np.uint64)
    return ((2 * (words >> np.uint64(9)) + 1).astype(np.float64) * 2.0**-24).astype(F32)


def gumbel(seed: int, position: int, token_ids: npt.ArrayLike) -> Array:
    """Return the noise of each token id at an absolute position."""
    key = (seed & 0xFFFFFFFF, seed >> 32)
    low, high = position & 0xFFFFFFFF, position >> 32
    words = [philox4x32((i >> 2, low, high, 0), key)[i & 3] for i in np.asarray(token_ids).tolist()]
    return -log32(-log32(uniform(words)))


@_ieee
def adjust(
    logits: Array,
    *,
    logit_bias: Mapping[int, float],
    repetition_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
) -> Array:
    """One row of logits [V] with its bias and penalties."""
    x = logits.copy()
    for token, bias in logit_bias.items():
        x[token] = x[token] + F32(bias)
    r = F32(repetition_penalty)
    for token in {*prompt_ids, *output_ids}:
        x[token] = x[token] / r if x[token] > 0 else x[token] * r
    for token, count in Counter(output_ids).items():
        x[token] = x[token] - F32(frequency_penalty) * F32(count)
        x[token] = x[token] - F32(presence_penalty)
    return x


@_ieee
def sample(
    logits: Array,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] = {},
    prompt_ids: Sequence[int] = (),
    output_ids: Sequence[int] = (),
    seed: int = 0,
    position: int = 0,
    masked: Sequence[int] = (),
) -> int:
    """Return the token id that one row of logits [V] gives, or -1; ``masked`` ids take no part.

    None of the logits may be NaN or +Inf.
    """
    ids = np.setdiff1d(np.arange(len(logits)), masked)
    x = adjust(
        logits,
        logit_bias=logit_bias,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        prompt_ids=prompt_ids,
        output_ids=output_ids,
    )[ids]
    greedy = temperature < c.GREEDY_BELOW
    if not greedy:
        x = x / F32(temperature)
    if not np.isfinite(x.max()):
        return -1
    if greedy:
        return int(ids[x.argmax()])
    order = np.argsort(-x, kind="stable")[: top_k or None]
    ids, x = ids[order], x[order]
    w = exp32(x - x[0])
    sums = np.cumsum(w, dtype=np.float64)  # in order, one addition a step
    kept = 1 + int(np.count_nonzero(sums[:-1] < top_p * sums[-1]))
    likely = w[:kept] >= F32(min_p)
    kept_ids = ids[:kept][likely]
    noisy = x[:kept][likely] + gumbel(seed, position, kept_ids)
    return int(kept_ids[noisy == noisy.max()].min())


def choice_seed(seed: int, i: int) -> int:
    """Return the seed of choice i of a request with n > 1."""
    state = (seed + (i - 1) * c.SPLITMIX_GAMMA) % 2**64
    return int(_splitmix64(np.array([state], np.uint64))[0]) if i else seed


# Rule 8


def checksum(logits: Array) -> npt.NDArray[np.uint64]:
    """Two order-free sums over the bits of each row. [L, V] -> [L, 2]."""
    bits = np.where(np.isnan(logits), np.uint32(0x7FC00000), logits.view(np.uint32))
    place = np.arange(logits.shape[-1], dtype=np.uint64) << np.uint64(32)
    sums = [
        _splitmix64(bits + place + np.uint64(key)).sum(axis=-1, dtype=np.uint64)
        for key in c.CHECKSUM_KEYS
    ]
    return np.stack(sums, axis=-1)


def _splitmix64(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = z + np.uint64(c.SPLITMIX_GAMMA)
    z = (z ^ z >> np.uint64(30)) * np.uint64(c.SPLITMIX_MUL1)
    z = (z ^ z >> np.uint64(27)) * np.uint64(c.SPLITMIX_MUL2)
    return z ^ z >> np.uint64(31)


# Rule 9b


def latent_noise(seed: int, rollout: int, step: int, elements: int) -> Array:
    """Return the integers that a latent state's noise is a multiple of. [elements]"""
    key = (seed & 0xFFFFFFFF, seed >> 32)
    blocks = [philox4x32((element, step, rollout, 1), key) for element in range(elements)]
    sums = [sum((word & 0xFFFF) + (word >> 16) for word in words) for words in blocks]
    return np.array(sums, F32) - F32(c.NOISE_CENTRE)


@_ieee
def add_latent_noise(z: Array, sigma: float, seed: int, rollout: int, step: int) -> Array:
    """Return a state z [tokens, hidden] with its noise, before a step."""
    noise = latent_noise(seed, rollout, step, z.size).reshape(z.shape)
    return z + noise * (F32(sigma) * F32(c.NOISE_UNIT))
