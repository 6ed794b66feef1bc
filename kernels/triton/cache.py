"""Keys and values of a batch to their pages, bits unchanged; and what ``rope`` shares of that.

A page of a cache is [kv_heads, 64, D]; a slot is ``page * 64 + place``, -1 for a row to leave out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.triton import launch
from detinfer.kernels.triton.arguments import check_adjacent, check_dtype, check_float, check_shape
from detinfer.kernels.triton.numeric import lanes_of
from detinfer.kernels.triton.overlap import take_turn

PAGE = tl.constexpr(PAGE_SIZE)

# Tokens from which a program takes more heads, to read a token's angles less often.
MANY_TOKENS = 256


@triton.jit
def write_cache_kernel(
    k, v, slots, k_cache, v_cache,
    k_token, k_head, v_token, v_head, k_page, v_page,
    KV_HEADS: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr, LANES: tl.constexpr,
    HEADS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """HEADS key and value heads of one token to their page."""
    take_turn(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, LANES)[None, :]
    slot = tl.load(slots + token).to(tl.int64)
    page, place = slot // PAGE, slot % PAGE
    live = (head < KV_HEADS) & (slot >= 0)
    row = head * PAGE + place
    mask = live & (column < K_DIM)
    keys = tl.load(k + token * k_token + head * k_head + column, mask=mask)
    tl.store(k_cache + page * k_page + row * K_DIM + column, keys, mask=mask)
    mask = live & (column < V_DIM)
    values = tl.load(v + token * v_token + head * v_head + column, mask=mask)
    tl.store(v_cache + page * v_page + row * V_DIM + column, values, mask=mask)


def configuration(size: int, tokens: int) -> tuple[int, int]:
    """Heads of a program and its warps, for heads of this size. Free: neither changes a bit."""
    tile = 512 if tokens < MANY_TOKENS else 2048
    heads = max(1, tile // lanes_of(size))
    return heads, max(1, min(4, heads * lanes_of(size) // 512))


def write_cache(k: Tensor, v: Tensor, slots: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """Write keys and values of a batch to their pages, bits unchanged.

    Args:
        k: [T, kv_heads, Dk]; any strides of tokens and heads.
        v: [T, kv_heads, Dv]; likewise.
        slots: where each token goes, -1 for nowhere; no two alike. [T] int32
        k_cache: [pages, kv_heads, 64, Dk] of k's dtype; pages apart, each contiguous.
        v_cache: [pages, kv_heads, 64, Dv] of k's dtype; likewise.

    Raises:
        ValueError: a shape, dtype or layout with no kernel.
    """
    check_float("k", k)
    if k.dim() != 3:
        raise ValueError(f"k: got shape {tuple(k.shape)}, expected (T, kv_heads, Dk)")
    tokens, kv_heads, k_dim = k.shape
    v_dim = v.shape[-1]
    check_shape("v", v, (tokens, kv_heads, v_dim))
    check_dtype("v", v, k.dtype)
    check_adjacent("k", k)
    check_adjacent("v", v)
    check_index("slots", slots, tokens)
    check_cache("k_cache", k_cache, kv_heads, k_dim, k.dtype)
    check_cache("v_cache", v_cache, kv_heads, v_dim, k.dtype)
    if not tokens:
        return
    lanes = triton.next_power_of_2(max(k_dim, v_dim))
    block, warps = configuration(lanes, tokens)
    block = min(block, triton.next_power_of_2(kv_heads))
    write_cache_kernel[(tokens, triton.cdiv(kv_heads, block))](
        k, v, slots, k_cache, v_cache,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1), k_cache.stride(0), v_cache.stride(0),
        KV_HEADS=kv_heads, K_DIM=k_dim, V_DIM=v_dim, LANES=lanes, HEADS=block,
        num_warps=warps, **launch.options(k.device),
    )  # fmt: skip


def check_index(name: str, index: Tensor, tokens: int) -> None:
    """Raise ValueError unless there is an int32 for each token."""
    check_shape(name, index, (tokens,))
    check_dtype(name, index, torch.int32)
    check_adjacent(name, index)


def check_cache(name: str, cache: Tensor, kv_heads: int, size: int, dtype: torch.dtype) -> None:
    """Raise ValueError unless ``cache`` is pages of these heads, each contiguous."""
    expected = (kv_heads, PAGE_SIZE, size)
    if cache.dim() != 4 or tuple(cache.shape[1:]) != expected:
        shape = ", ".join(map(str, expected))
        raise ValueError(f"{name}: got shape {tuple(cache.shape)}, expected (pages, {shape})")
    check_dtype(name, cache, dtype)
    if cache.stride()[1:] != (PAGE_SIZE * size, size, 1):
        raise ValueError(f"{name}: got strides {cache.stride()}, expected contiguous pages")
