"""PyTorch's own kernels: for training, and for fast answers, whose bits follow the batch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from detinfer.recursive.network import EPS


class TorchKernels:
    """network.Kernels whose weights are plain tensors."""

    def embedding(self, ids: Tensor, weight: Tensor) -> Tensor:
        """Look up rows."""
        return functional.embedding(ids, weight)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiply by the transposed weight."""
        return functional.linear(x, weight, bias)

    def rms_norm(self, x: Tensor) -> Tensor:
        """Norm over the last dimension."""
        return functional.rms_norm(x, (x.shape[-1],), eps=EPS)

    def mean_rows(self, x: Tensor) -> Tensor:
        """Average over rows."""
        return x.mean(1)

    def silu_mul(self, x: Tensor) -> Tensor:
        """Gate one half by the other."""
        gate, up = x.chunk(2, -1)
        return functional.silu(gate) * up

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from every row to every row; of two rows, softmax is one sigmoid."""
        if q.shape[2] == 2:  # thousands of pairs: a call of PyTorch's attention for each is slow
            other, differ = v.flip(2), k - k.flip(2)
            own: Tensor = ((q * differ).sum(-1, keepdim=True) * q.shape[3] ** -0.5).sigmoid()
            return other + own * (v - other)
        return functional.scaled_dot_product_attention(q, k, v)
