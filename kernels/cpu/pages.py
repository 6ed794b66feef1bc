"""What a page of the KV cache holds, and how a token gets there (docs/arithmetic.md, rule 3).

A page holds 64 positions of every head: keys as [kv_heads, k_dim, 64], values as
[kv_heads, 64, v_dim padded to 16]. Its numbers have ``size`` bytes: binary32 has 4, bfloat16 2.
"""

from __future__ import annotations

import numpy as np

from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.vector import LANES, f32_at, u16_at

PAGE = PAGE_SIZE
BFLOAT16 = 2  # bytes


@kernel
def padded(v_dim):
    """Values are stored in whole vectors."""
    return (v_dim + LANES - 1) // LANES * LANES


@kernel
def rounded(bits):
    """Return the bfloat16 of a binary32, both as integers; NaN if it is not finite."""
    if bits & 0x7FFFFFFF >= 0x7F7F8000:  # from here on to nearest is infinity
        return np.uint16(0x7FC0)
    return np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


@kernel
def _write(source, count, target, step, size):
    """``count`` numbers at ``source`` to every ``step``-th at ``target``; addresses."""
    given = f32_at(source, count)
    if size == BFLOAT16:
        bits, halves = given.view(np.uint32), u16_at(target, count * step)
        for i in range(count):
            halves[i * step] = rounded(bits[i])
    else:
        numbers = f32_at(target, count * step)
        for i in range(count):
            numbers[i * step] = given[i]


@kernel
def write_cache(k, v, position, table, kv_heads, k_dim, v_dim, k_cache, v_cache, size):
    """One token's keys and values into its page; addresses, rows [kv_heads * dim]."""
    v_pad = padded(v_dim)
    page, slot = np.int64(table[position // PAGE]), position % PAGE
    for head in range(kv_heads):
        first = page * kv_heads + head
        keys = k_cache + (first * k_dim * PAGE + slot) * size
        values = v_cache + (first * PAGE + slot) * v_pad * size
        _write(k + head * k_dim * 4, k_dim, keys, PAGE, size)
        _write(v + head * v_dim * 4, v_dim, values, 1, size)
