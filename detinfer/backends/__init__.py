"""One module a profile of the arithmetic contract, with the functions ``detinfer.ops`` names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerCacheSpec:
    """What one attention layer keeps of a token."""

    kv_heads: int
    k_dim: int
    v_dim: int
