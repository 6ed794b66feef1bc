"""What is written to pages of bfloat16: the reference's bits, for numbers of every kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from kernel_inputs import numbers, whole_range

from detinfer import ops
from detinfer.kernels import reference
from detinfer.testing import assert_same_bits, same_bits

Array = npt.NDArray[np.float32]
SPEC = ops.LayerCacheSpec(1, 64, 48)


def samples() -> Array:
    """Numbers of the whole range, and those around every edge of rounding, in whole rows."""
    edges = np.array([0x3F808000, 0x3F818000, 0x7F7F8000, 0x7F800000, 0x8000, 0x80000000], np.int64)
    near = (edges[:, None] + np.arange(-2, 3)).reshape(-1) % 2**32
    payloads = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.int64)
    special = np.concatenate([near, near ^ 0x80000000, payloads]).astype(np.uint32).view(np.float32)
    x = np.concatenate([special, whole_range(1999993, 500)])
    return np.resize(x, (-(-x.size // SPEC.k_dim), SPEC.k_dim))


def written(x: Array) -> Array:
    """Every row as the keys of a token, as they are read back."""
    tokens = len(x)
    cache = ops.KVCache([SPEC], -(-tokens // 64), kept=torch.bfloat16)
    batch = ops.BatchTensors(
        np.arange(tokens, dtype=np.int32),
        np.array([0, tokens], np.int32),
        np.arange(cache.num_pages, dtype=np.int32)[None],
    )
    q, k = torch.zeros(tokens, 1, SPEC.k_dim), torch.from_numpy(x)[:, None]
    ops.attention(q, k, k[..., : SPEC.v_dim], cache, 0, batch, scale=1.0)
    keys, values = (pool.float().numpy() for pool in numbers(cache))
    rows: Array = keys[:, 0].transpose(0, 2, 1).reshape(-1, SPEC.k_dim)[:tokens]
    assert_same_bits(values[:, 0].reshape(-1, SPEC.v_dim)[:tokens], rows[:, : SPEC.v_dim])
    return rows


def test_pages_hold_what_the_contract_rounds_to() -> None:
    x = samples()
    got = written(x)
    assert_same_bits(got, reference.cached(x, "bfloat16"))
    assert not np.isinf(got).any()
    finite = np.isfinite(x)
    assert np.isnan(got[~finite]).all()
    assert (np.abs(x[finite & np.isnan(got)]) >= np.float32(3.3961775e38)).all()


def test_numbers_that_bfloat16_has_are_kept() -> None:
    x = samples()
    x = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    x = np.where(np.isfinite(x), x, np.float32(1))
    assert_same_bits(written(x), x)


def cut_off(x: Array) -> Array:
    return (x.view(np.uint32) & 0xFFFF0000).view(np.float32)


def half_up(x: Array) -> Array:
    return ((x.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("rounding", [cut_off, half_up])
def test_other_roundings_fail_the_same_comparison(rounding: Callable[[Array], Array]) -> None:
    """The negative control."""
    x = np.linspace(1, 2, 64 * 64, dtype=np.float32).reshape(-1, SPEC.k_dim)
    x[0, 0] = 1 + 2**-8  # halfway to the next one up
    assert_same_bits(written(x), reference.cached(x, "bfloat16"))
    assert not same_bits(rounding(x), reference.cached(x, "bfloat16"))


@pytest.mark.parametrize("name", ["k", "v"])
def test_a_number_too_large_for_bfloat16_makes_later_rows_nan(name: str) -> None:
    """Whatever its score's sign: a key of score -inf would else have no weight, and no error."""
    rng = np.random.default_rng(0)
    given = {n: rng.standard_normal((9, 1, 64)).astype(np.float32) for n in "qkv"}
    given[name][4, 0, 7] = 3.4e38
    for sign in (1, -1):
        given["q"][:, 0, 7] = sign
        cache = ops.KVCache([ops.LayerCacheSpec(1, 64, 64)], 1, kept=torch.bfloat16)
        batch = ops.BatchTensors(
            np.arange(9, dtype=np.int32), np.array([0, 9], np.int32), np.zeros((1, 1), np.int32)
        )
        q, k, v = (torch.from_numpy(given[n]) for n in "qkv")
        out = ops.attention(q, k, v, cache, 0, batch, scale=1.0)
        assert out[:4].isfinite().all()
        column = slice(7, 8) if name == "v" else slice(None)
        assert out[4:, :, column].isnan().all()
