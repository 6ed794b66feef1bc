"""What the kernels of both profiles are tested with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from detinfer import ops
from detinfer.kernels import constants
from detinfer.testing import SPECIAL, rounded_normal

F32 = np.float32

# PyTorch's own, which follow the CPU.
STOCK = {
    "erf": torch.erf,
    "exp": torch.exp,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "log": torch.log,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "softplus": torch.nn.functional.softplus,
    "tanh": torch.tanh,
}


def whole_range(step: int, drawn: int) -> np.ndarray:
    """Every sign and exponent, each edge of a formula with its neighbours, and NaN and infinity.

    Args:
        step: from one bit pattern to the next.
        drawn: numbers drawn from each of three ranges.
    """
    patterns = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(F32)
    edges = np.array(
        [constants.EXP_LOW, constants.EXP_HIGH, constants.TANH_SMALL, 1, constants.ERF_ONE,
         constants.SOFTPLUS_LINEAR, 2.0**-126, 2.0**0.5, 0.5**0.5], F32)  # fmt: skip
    around = [(edges.view(np.int32) + ulps).view(F32) for ulps in range(-3, 4)]
    rng = np.random.default_rng(0)
    ranges = [rng.uniform(-width, width, drawn).astype(F32) for width in (1, 5, 100)]
    x = np.concatenate([patterns, *around, *(-a for a in around), *ranges, SPECIAL])
    return np.append(x, np.array([np.nan, -np.nan, np.inf, -np.inf], F32))


def numbers(cache: ops.KVCache) -> list[torch.Tensor]:
    """What the pages of each layer hold, as numbers: keys of each, then values of each."""
    return [torch.from_numpy(pool).view(cache.kept) for pool in (*cache.keys, *cache.values)]


def before_rounding(attention: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a defect: a step reads its own keys and values as they were before they are cached."""

    def attend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: ops.KVCache,
        *rest: Any,
        **options: Any,
    ) -> torch.Tensor:
        attention(q, k, v, cache, *rest, **options)  # what later steps read
        exact = ops.KVCache(cache.specs, cache.num_pages)
        for ours, theirs in zip(numbers(exact), numbers(cache), strict=True):
            ours.copy_(theirs)
        return attention(q, k, v, exact, *rest, **options)

    return attend


@dataclass
class Tokens:
    """Queries, keys and values of every token of one sequence, and the pages it owns."""

    q: np.ndarray  # [S, H, Dk]
    k: np.ndarray  # [S, Hkv, Dk]
    v: np.ndarray  # [S, Hkv, Dv]
    pages: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.q)


def sequence(
    length: int,
    *,
    heads: tuple[int, int] = (2, 1),
    dims: tuple[int, int] = (16, 8),
    seed: int = 0,
    scale: float = 1.0,
    dtype: str = "float32",
) -> Tokens:
    """A random sequence: heads (H, Hkv), dims (Dk, Dv)."""
    rng = np.random.default_rng((seed, length, *heads, *dims))
    shapes = ((heads[0], dims[0]), (heads[1], dims[0]), (heads[1], dims[1]))
    return Tokens(*(rounded_normal(rng, (length, *s), dtype, scale) for s in shapes))
