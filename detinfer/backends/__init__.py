"""One module a profile of the arithmetic contract: its *backend*, what ``detinfer.ops`` opens to.

``Backend`` is what each must offer; mypy checks both against it where ``ops`` picks one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LayerCacheSpec:
    """What one attention layer keeps of a token."""

    kv_heads: int
    k_dim: int
    v_dim: int


Weight = TypeVar("Weight")  # a packed weight, made by ``pack``
Cache = TypeVar("Cache", contravariant=True)  # the page pool of all layers
Step = TypeVar("Step", contravariant=True)  # a step's rows and pages


class Backend(Protocol[Weight, Cache, Step]):
    """The kernels of one profile; ``detinfer.ops`` says what each does."""

    def pack(self, weight: Tensor, dtype: torch.dtype, device: torch.device) -> Weight: ...

    def linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None, out_dtype: torch.dtype | None
    ) -> Tensor: ...

    def embedding(self, ids: Tensor, weight: Weight, dtype: torch.dtype) -> Tensor: ...

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float, variant: str) -> Tensor: ...

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor: ...

    def activation(self, name: str, x: Tensor) -> Tensor: ...

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor: ...

    def gelu_tanh_mul(self, gate: Tensor, up: Tensor) -> Tensor: ...

    def softmax(self, x: Tensor) -> Tensor: ...

    def log_softmax(self, x: Tensor) -> Tensor: ...

    def summarise(self, logits: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]: ...

    def page_bytes(self, spec: LayerCacheSpec, dtype: torch.dtype) -> int: ...

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: Cache,
        layer: int,
        batch: Step,
        *,
        scale: float,
        window: int,
        softcap: float,
        sinks: Tensor | None,
    ) -> Tensor: ...

    def attend_all(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor: ...
