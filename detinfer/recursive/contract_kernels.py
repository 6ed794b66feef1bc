"""The contract's kernels (docs/arithmetic.md, rule 9), by whichever profile is in use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detinfer import ops
from detinfer.recursive.network import EPS

PLAIN = ("H_init", "L_init", "puzzle_emb.weights", "q_head.bias")  # read as they are


def pack_weights(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return weights as ``ContractKernels`` take them."""
    device = ops.device()
    return {
        name: weight.to(device) if name in PLAIN else ops.pack(weight)
        for name, weight in weights.items()
    }


class ContractKernels:
    """network.Kernels whose weights are packed; a puzzle's bits are its own."""

    def embedding(self, ids: Tensor, weight: Any) -> Tensor:
        """Look up rows."""
        return ops.embedding(ids, weight, torch.float32)

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        """Multiply by the transposed weight."""
        return ops.linear(x, weight, bias)

    def rms_norm(self, x: Tensor) -> Tensor:
        """Norm over the last dimension."""
        return ops.rms_norm(x, None, EPS, "scale_rounded")

    def mean_rows(self, x: Tensor) -> Tensor:
        """Average over rows: a linear layer of ones, then one division."""
        count = x.shape[1]
        total = ops.linear(x.transpose(1, 2), ops.pack(torch.ones(1, count)))[..., 0]
        return total / torch.full_like(total, count)  # by a number, a GPU would multiply

    def silu_mul(self, x: Tensor) -> Tensor:
        """Gate one half by the other."""
        gate, up = x.chunk(2, -1)
        return ops.silu_mul(gate, up)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from every row to every row."""
        return ops.attend_all(q, k, v, 1 / math.sqrt(q.shape[-1]))
