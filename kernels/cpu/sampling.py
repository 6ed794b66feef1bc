"""Noise and weights of the sampler (docs/arithmetic.md, rule 7)."""

from __future__ import annotations

import numpy as np
from numba import prange, types

from detinfer.kernels.cpu.elementary import exp32, log32
from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.logits import row_max
from detinfer.kernels.cpu.philox import fill_words
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.vector import Emit, div, f32_at, row_intrinsic

UNIT = 2.0**-24
NINE, TWO, ONE = np.uint32(9), np.uint32(2), np.uint32(1)
WHOLE = np.float32(1.0)
MAGNITUDE, SHIFT = np.int32(0x7FFFFFFF), np.uint64(32)
HALF, SIXTH, TWENTY_FOURTH = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)

NOISE_MAX = np.float32(17.0)  # the noise lies in (-2.82, 16.64)
LEADERS = np.float32(4.0)  # those this close to the top draw first: one of them usually wins
BLOCK = 1024  # tokens whose words are made at once

bits_of = row_intrinsic(types.int32, [types.float32], lambda b, x: Emit(b, 1).bits(x))


@kernel
def unit(word):
    """Return a word as a number strictly between 0 and 1."""
    return np.float32(np.float64((word >> NINE) * TWO + ONE) * UNIT)


@kernel
def noise_of_word(word):
    """Gumbel noise -log(-log(u)), u the word as a number."""
    return -log32(-log32(unit(word)))


@kernel
def may_reach(word, distance):
    """Whether the noise of a word may be so large; False is certain.

    As -log(u) >= 1 - u, noise g has 1 - u <= exp(-g), and exp(g) is at least the first terms of its
    series: so no logarithm is taken.
    """
    t = max(distance, np.float32(0.0))
    series = WHOLE + t * (WHOLE + t * (HALF + t * (SIXTH + t * TWENTY_FOURTH)))
    return (WHOLE - unit(word)) * series <= WHOLE


@kernel
def gumbel_argmax(x, ids, seed, position):
    """Find the id of the largest x + noise; ties to the lowest. x [K] float32, ids [K] int64."""
    top = row_max(x.ctypes.data, len(x))
    near, values = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.float32)
    words, asked = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.bool_)
    best, winner = np.float32(-np.inf), np.int64(-1)
    least, below = top - LEADERS, np.float32(np.inf)
    for _ in range(2):  # those close to the top, then others that may still win
        # What a sum's own rounding may add, and that of the logarithms.
        reach = best - np.float32(0.01) - abs(best) * np.float32(2.0**-22)
        for first in range(0, len(x), BLOCK):
            end, count = min(first + BLOCK, len(x)), 0
            if row_max(x.ctypes.data + 4 * first, end - first) < least:
                continue
            for i in range(first, end):
                near[count], values[count] = ids[i], x[i]
                count += (x[i] >= least) & (x[i] < below)
            fill_words(near[:count], seed, position, words)
            for k in range(count):
                asked[k] = may_reach(words[k], reach - values[k])
            for k in range(count):
                if asked[k]:
                    value = values[k] + noise_of_word(words[k])
                    if value > best or (value == best and near[k] < winner):
                        best, winner = value, near[k]
        least, below = best - NOISE_MAX, least
    return winner


@parallel_kernel
def draw_rows(logits, rows, temperatures, seeds, positions, tokens):
    """Draw a token from each of some rows of logits [L, V], over its temperature.

    Args:
        rows: which. [K] int64
        temperatures: [K] float32
        seeds, positions: [K] uint64
        tokens: drawn, -1 where the largest logit over its temperature is not finite. [K] int64
    """
    vocab = logits.shape[1]
    logits0 = logits.ctypes.data
    for k in prange(len(rows)):
        before = enter()
        source = f32_at(logits0 + rows[k] * vocab * 4, vocab)
        x, ids = np.empty(vocab, np.float32), np.arange(vocab)
        for i in range(vocab):
            x[i] = div(source[i], temperatures[k])
        tokens[k] = -1
        if np.isfinite(row_max(x.ctypes.data, vocab)):
            tokens[k] = gumbel_argmax(x, ids, seeds[k], positions[k])
        leave(before)


@kernel
def weights(x, top):
    """exp(x - top), top the largest. [K] -> [K] float32."""
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = exp32(x[i] - top)
    return out


@kernel
def nucleus(w, p):
    """Count the first weights whose sum is at least p times all. w [K] float32, descending.

    Sums run in order, one addition a step, in binary64.
    """
    total = 0.0
    for i in range(len(w)):
        total += np.float64(w[i])
    so_far = 0.0
    for i in range(len(w)):
        so_far += np.float64(w[i])
        if so_far >= p * total:
            return i + 1
    return len(w)


@kernel
def rank_keys(x, ids):
    """Integers whose ascending order is that of x descending, ties to the lowest index.

    The upper half is the value's bits made monotonic and turned round, the lower one the index.

    Args:
        ids: indices of x. [K] int64

    Returns:
        [K] uint64
    """
    keys = np.empty(len(ids), np.uint64)
    for k in range(len(ids)):
        bits = bits_of(x[ids[k]] + np.float32(0))  # +0 makes -0 equal to it
        upper = np.uint64(np.uint32(bits if bits < 0 else ~bits & MAGNITUDE))
        keys[k] = (upper << SHIFT) | np.uint64(ids[k])
    return keys
