"""The cache write alone, at the heads of real models."""

from __future__ import annotations

from collections.abc import Iterator

import triton

from detinfer.compile_audit.cases import Case
from detinfer.kernels.triton.cache import MANY_TOKENS, configuration, write_cache_kernel
from detinfer.kernels.triton.numeric import lanes_of


def cases(arch: int) -> Iterator[Case]:
    """Yield an architecture's compilations."""
    if arch == 90:
        for tokens in (1, MANY_TOKENS):
            yield _case(8, 128, tokens)


def _case(kv_heads: int, size: int, tokens: int) -> Case:
    block, warps = configuration(size, tokens)
    block = min(block, triton.next_power_of_2(kv_heads))
    signature = dict.fromkeys(("k", "v", "k_cache", "v_cache"), "*bf16") | {"slots": "*i32"}
    strides = ("k_token", "k_head", "v_token", "v_head", "k_page", "v_page")
    signature |= dict.fromkeys(strides, "i32")
    return Case(
        name=f"write_cache bf16 {kv_heads}x{size} heads {block} w{warps}",
        kernel=write_cache_kernel,
        signature=signature,
        constants={
            "KV_HEADS": kv_heads,
            "K_DIM": size,
            "V_DIM": size,
            "LANES": lanes_of(size),
            "HEADS": block,
        },
        warps=warps,
        aligned=frozenset(signature),
    )
