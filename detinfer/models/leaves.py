"""Linear layers and embeddings over packed weights.

The swapped class comes behind the model's own one, so that a subclass's forward (Gemma's scaled
embedding, OPT's position offset) still runs and finds ours as its ``super().forward``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detinfer import ops
from detinfer.models.activations import elementary
from detinfer.models.context import current


class LeafWeight:
    """One packed weight, shared by all modules tied to it.

    Args:
        packed: from ``ops.pack`` or ``ops.pack_blocks``. [n, k]
        allow_fast: whether a stock copy may be made for fast steps.
    """

    def __init__(self, packed: Any, allow_fast: bool) -> None:
        self.packed = packed
        self._allow_fast = allow_fast
        self._stock: Tensor | None = None

    def stock(self, dtype: torch.dtype) -> Tensor:
        """Return the weight for PyTorch's ops, made on the first fast step and kept. [n, k]."""
        if self._stock is None or self._stock.dtype != dtype:
            if not self._allow_fast:
                raise RuntimeError("a fast step in an engine started with allow_fast=False")
            self._stock = self.packed.unpack(dtype)
        return self._stock

    def linear(
        self, x: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        """``x @ weight.T + bias`` by the current step's mode."""
        if current().deterministic:
            return ops.linear(x, self.packed, bias, out_dtype)
        y = F.linear(x, self.stock(x.dtype), None if bias is None else bias.to(x.dtype))
        return y if out_dtype is None else y.to(out_dtype)

    def lookup(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the weight, widened to ``dtype``."""
        if current().deterministic:
            return ops.embedding(ids, self.packed, dtype)
        return F.embedding(ids, self.stock(dtype))


class PackedLinear(nn.Linear):
    """``nn.Linear`` over a packed weight."""

    leaf: LeafWeight

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return self.leaf.linear(input, self.bias)


class PackedConv1D(nn.Module):
    """GPT-2's ``Conv1D``: a linear layer whose checkpoint is transposed."""

    leaf: LeafWeight
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., nx] -> [..., nf]."""
        return self.leaf.linear(x, self.bias)


class PackedHead(PackedLinear):
    """The output head: binary32 logits whatever the activation dtype, and the final softcap."""

    softcap: float | None

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., vocabulary] float32."""
        logits = self.leaf.linear(input, self.bias, torch.float32)
        if self.softcap is None:
            return logits
        return elementary("tanh", logits / self.softcap) * self.softcap


class PackedEmbedding(nn.Embedding):
    """``nn.Embedding`` over a packed table."""

    leaf: LeafWeight

    def forward(self, input: Tensor) -> Tensor:
        """Ids [...] -> [..., embedding_dim] in the placeholder's (the activation) dtype."""
        return self.leaf.lookup(input, self.weight.dtype)


def placeholder(
    shape: torch.Size, dtype: torch.dtype, device: torch.device | None = None
) -> nn.Parameter:
    """Return a parameter of this shape and dtype that holds one element of memory."""
    one = torch.zeros(1, dtype=dtype, device=device)
    return nn.Parameter(one.expand(shape), requires_grad=False)


def is_placeholder(tensor: Tensor) -> bool:
    """Return whether a parameter only stands for one that was packed."""
    return tensor.numel() > 1 and not any(tensor.stride())
