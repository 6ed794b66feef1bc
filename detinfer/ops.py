"""The one door to the kernels: torch tensors in, torch tensors out, bits by contract.

Every function keeps docs/arithmetic.md, by the profile in use: ``portable`` (CPU kernels), or
``native`` (Triton kernels) inside ``with use(profile)``. Inputs widen to binary32 (exact); one
rounding to their dtype at the end. A row's result depends on nothing but the row and the weights.

Two go past it on the way to an answer: ``runner``, since a fused plan is a sequence of a profile's
kernels over memory laid out for them, and ``sampling``, which chooses tokens on the host whatever
the profile. A contract in pyproject.toml keeps the others to this door.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detinfer.backends import Backend, LayerCacheSpec, portable
from detinfer.backends.portable import RMS_VARIANTS, PackedWeight
from detinfer.backends.portable_cache import BatchTensors, KVCache

__all__ = [
    "PORTABLE",
    "RMS_VARIANTS",
    "BatchTensors",
    "KVCache",
    "LayerCacheSpec",
    "PackedWeight",
    "Profile",
    "activation",
    "attend_all",
    "attention",
    "device",
    "embedding",
    "gelu_tanh_mul",
    "layer_norm",
    "linear",
    "log_softmax",
    "pack",
    "pack_blocks",
    "page_bytes",
    "rms_norm",
    "silu_mul",
    "softmax",
    "summarise",
    "use",
]


@dataclass(frozen=True)
class Profile:
    """Which kernels run, and where.

    Attributes:
        name: ``portable`` or ``native``.
        device: where packed weights go and tensors are expected.
    """

    name: str
    device: torch.device


PORTABLE = Profile("portable", torch.device("cpu"))


class _Active(threading.local):
    profile = PORTABLE


_active = _Active()


@contextmanager
def use(profile: Profile) -> Iterator[None]:
    """Run this thread's ops by ``profile``; restores the previous one on leaving."""
    before = _active.profile
    _active.profile = profile
    try:
        yield
    finally:
        _active.profile = before


def device() -> torch.device:
    """Return where the profile in use computes."""
    return _active.profile.device


if TYPE_CHECKING:  # both are backends
    from detinfer.backends import native
    from detinfer.backends.native_batch import NativeBatch

    _portable: Backend[PackedWeight, KVCache, BatchTensors] = portable
    _native: Backend[native.NativeWeight, native.NativeCache, NativeBatch] = native


def _kernels() -> Backend[Any, Any, Any]:
    # By name, so that a machine without Triton never imports it.
    module = importlib.import_module(f"detinfer.backends.{_active.profile.name}")
    return cast("Backend[Any, Any, Any]", module)


def pack(weight: Tensor, dtype: torch.dtype | None = None) -> Any:
    """Return a linear or embedding weight [n, k] as the profile's kernels read it.

    Args:
        weight: the checkpoint's.
        dtype: of the activations; the weight's own if None. ``native`` converts the weight to it,
            ``portable`` keeps 16-bit storage wherever every value is exactly a bfloat16.
    """
    return _kernels().pack(weight, dtype or weight.dtype, _active.profile.device)


def pack_blocks(blocks: Tensor, kind: str, n: int, k: int) -> Any:
    """Return a weight [n, k] that stays in its quantised blocks: ``linear`` then is rule 1q.

    Profile ``portable`` only.

    Args:
        blocks: bytes of its rows of blocks, as GGUF files have them. uint8
        kind: their format, one of ``BLOCK_FORMATS``.
        n: rows.
        k: values of a row.
    """
    return portable.pack_blocks(blocks, kind, n, k)


def linear(
    x: Tensor, weight: Any, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """``x @ weight.T + bias``: rule 1, or rule 1q over blocks.

    Args:
        x: [..., k], float32, bfloat16 or float16.
        weight: from ``pack`` or ``pack_blocks``.
        bias: [n], or None.
        out_dtype: of the result; x's if None.

    Raises:
        ValueError: on a dtype or shape with no kernel.
    """
    return _kernels().linear(x, weight, bias, out_dtype)


def embedding(ids: Tensor, weight: Any, dtype: torch.dtype) -> Tensor:
    """Rows ``ids`` [...] of a packed weight, in ``dtype``. [..., k]

    Raises:
        ValueError: an id outside 0..n-1 (``native``: its row is NaN instead, with no wait for the
            device).
    """
    return _kernels().embedding(ids, weight, dtype)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, variant: str) -> Tensor:
    """RMSNorm over the last dimension: rule 2.

    Args:
        x: [..., d].
        weight: [d], or None for no scaling.
        variant: where the model family rounds: ``scale_rounded`` (llama), ``round_scaled`` (olmo2)
            or ``one_plus`` (gemma).
    """
    return _kernels().rms_norm(x, weight, eps, variant)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dimension: rule 2. Weight and bias [d] are optional."""
    return _kernels().layer_norm(x, weight, bias, eps)


def activation(name: str, x: Tensor) -> Tensor:
    """Return an elementary function of rule 4, elementwise.

    Args:
        name: exp, log, tanh, erf, sigmoid, silu, softplus, gelu (erf) or gelu_tanh.
    """
    return _kernels().activation(name, x)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, rounded after each."""
    return _kernels().silu_mul(gate, up)


def gelu_tanh_mul(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu_tanh(gate) * up``, rounded after each."""
    return _kernels().gelu_tanh_mul(gate, up)


def softmax(x: Tensor) -> Tensor:
    """Rule 6 over the last dimension, as float32 (routers)."""
    return _kernels().softmax(x)


def log_softmax(x: Tensor) -> Tensor:
    """Rule 6 over the last dimension, as float32."""
    return _kernels().log_softmax(x)


def summarise(logits: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return what every step needs of its raw logits, in one wait for the device.

    Args:
        logits: [L, V] float32.

    Returns:
        The lowest id of each row's largest logit, -1 where one is NaN or +Inf or all are -Inf [L],
        and rule 8's two sums of each row [L, 2].
    """
    return _kernels().summarise(logits)


def page_bytes(spec: LayerCacheSpec, dtype: torch.dtype) -> int:
    """Bytes of one layer's page of 64 tokens, kept in ``dtype``."""
    return _kernels().page_bytes(spec, dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Any,
    layer: int,
    batch: Any,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Write ``k`` and ``v`` to their pages, then causal attention over each sequence: rule 3.

    Args:
        q: rotated queries. [T, heads, k_dim]
        k: rotated keys. [T, kv_heads, k_dim]
        v: values. [T, kv_heads, v_dim]
        cache: the profile's page pool.
        layer: which layer's.
        batch: the profile's view of the step.
        scale: of the scores.
        window: sliding window in keys, 0 for none.
        softcap: cap of the scores, 0 for none.
        sinks: attention sinks. [heads]

    Returns:
        [T, heads, v_dim] in q's dtype.

    Raises:
        ValueError: on shapes that do not fit the cache.
    """
    return _kernels().attention(
        q, k, v, cache, layer, batch, scale=scale, window=window, softcap=softcap, sinks=sinks
    )


def attend_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attend from every row to every row of its own board: rule 3 with nothing masked.

    Args:
        q, k, v: of one shape and dtype. [..., rows, dim]
        scale: of the scores.

    Raises:
        ValueError: on shapes that differ.
    """
    return _kernels().attend_all(q, k, v, scale)
