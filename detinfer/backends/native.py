"""Profile ``native``: the Triton kernels behind ``detinfer.ops``, which documents the functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detinfer.backends import LayerCacheSpec
from detinfer.backends.native_batch import NativeBatch
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.triton import activation as _activation
from detinfer.kernels.triton import attend_all as _attend_all
from detinfer.kernels.triton import attention as _attention
from detinfer.kernels.triton import cache as _cache
from detinfer.kernels.triton import embedding as _embedding
from detinfer.kernels.triton import logits as _logits
from detinfer.kernels.triton import matmul as _matmul
from detinfer.kernels.triton import norms as _norms

softmax = _logits.softmax
log_softmax = _logits.log_softmax
layer_norm = _norms.layer_norm
attend_all = _attend_all.attend_all


class NativeWeight(_matmul.Weight):
    """A weight [n, k] on the device, row-major, in the activation dtype."""

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as stock ops want it: itself where the dtype is its own. [n, k]"""
        return self.tensor.to(dtype)

    def rows(self, start: int, n: int) -> NativeWeight:
        """Rows [start, start + n), sharing memory."""
        return NativeWeight(self.tensor[start : start + n])


def pack(weight: Tensor, dtype: torch.dtype, device: torch.device) -> NativeWeight:
    return NativeWeight(weight.detach().to(device=device, dtype=dtype).contiguous())


def linear(
    x: Tensor, weight: NativeWeight, bias: Tensor | None, out_dtype: torch.dtype | None
) -> Tensor:
    if x.dtype != weight.dtype:  # a router that computes in float32 whatever the activations are
        weight = _widened(weight, x.dtype)
    y = _matmul.linear(_rows(x), weight, bias, out_dtype=out_dtype)
    return y.view(*x.shape[:-1], weight.n)


def _rows(x: Tensor) -> Tensor:
    """Return rows whose elements lie side by side, as the kernels read them. [T, D]"""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, variant: str) -> Tensor:
    return _norms.rms_norm(x if x.stride(-1) == 1 else x.contiguous(), weight, eps, variant)


def _widened(weight: NativeWeight, dtype: torch.dtype) -> NativeWeight:
    """Return a copy in another dtype, made once."""
    copies: dict[torch.dtype, NativeWeight] = weight.__dict__.setdefault("copies", {})
    if dtype not in copies:
        copies[dtype] = NativeWeight(weight.tensor.to(dtype))
    return copies[dtype]


def embedding(ids: Tensor, weight: NativeWeight, dtype: torch.dtype) -> Tensor:
    rows = _embedding.embedding(ids.reshape(-1), weight.tensor)
    return rows.view(*ids.shape, weight.k).to(dtype)


def activation(name: str, x: Tensor) -> Tensor:
    return _activation.activation(name, _rows(x)).view(x.shape)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return _gate(_activation.silu_mul, gate, up)


def gelu_tanh_mul(gate: Tensor, up: Tensor) -> Tensor:
    return _gate(_activation.gelu_tanh_mul, gate, up)


def _gate(kernel: Any, gate: Tensor, up: Tensor) -> Tensor:
    rows = kernel(_rows(gate), _rows(up))
    out: Tensor = rows.view(gate.shape)
    return out


def summarise(logits: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    table = _logits.summarise(logits).cpu().numpy()  # the step's one wait for the device
    return table[:, 0], table[:, 1:].view(np.uint64)


class NativeCache:
    """The page pool of every attention layer, on the device.

    Attributes:
        keys: per layer. [pages, kv_heads, 64, k_dim]
        values: per layer. [pages, kv_heads, 64, v_dim]
    """

    def __init__(
        self,
        specs: Sequence[LayerCacheSpec],
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.specs, self.num_pages, self.dtype = tuple(specs), num_pages, dtype

        def pool(spec: LayerCacheSpec, dim: int) -> Tensor:
            shape = (num_pages, spec.kv_heads, PAGE_SIZE, dim)
            return torch.empty(shape, dtype=dtype, device=device)

        self.keys = [pool(spec, spec.k_dim) for spec in specs]
        self.values = [pool(spec, spec.v_dim) for spec in specs]


def page_bytes(spec: LayerCacheSpec, dtype: torch.dtype) -> int:
    """Bytes of one page of 64 tokens."""
    return spec.kv_heads * PAGE_SIZE * (spec.k_dim + spec.v_dim) * dtype.itemsize


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: NativeCache,
    layer: int,
    batch: NativeBatch,
    *,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    keys, values = cache.keys[layer], cache.values[layer]
    _cache.write_cache(k, v, batch.slots, keys, values)
    return _attention.attention(
        q if q.stride(-1) == 1 else q.contiguous(),
        keys,
        values,
        batch.block_tables,
        batch.work(q.shape[1] // k.shape[1], window, k.shape[2], v.shape[2]),
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )
