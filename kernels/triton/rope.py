"""Per-head norms, rotary embedding and the cache write of a batch, in one launch (rules 2 and 5).

A page of a cache is [kv_heads, 64, D]; a slot is ``page * 64 + place``, -1 for a row to leave out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.triton import launch
from detinfer.kernels.triton.arguments import (
    check_adjacent,
    check_dtype,
    check_float,
    check_shape,
    check_vector,
    output,
)
from detinfer.kernels.triton.numeric import (
    MAX_LANES,
    VARIANTS,
    adjacent_sum,
    lanes_of,
    rms_scaled,
)

PAGE = tl.constexpr(PAGE_SIZE)

# Tokens from which a program takes more heads, to read a token's angles less often.
MANY_TOKENS = 256


@triton.jit
def _turned(x, partner, cos, sin, first, ANGLE: tl.constexpr):
    """Rule 5: x * cos with the partner's share subtracted in the first half, added in the other."""
    own = (x * cos).to(ANGLE).to(tl.float32)
    other = (partner * sin).to(ANGLE).to(tl.float32)
    return tl.where(first, own - other, own + other)


@triton.jit
def rotate_and_cache_kernel(
    qkv, positions, slots, cos, sin, k_cache, v_cache, q_norm, k_norm, out,
    row_stride, k_page, v_page, eps,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
    HALF: tl.constexpr, HEADS: tl.constexpr, VARIANT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one token: queries to ``out``, keys and values to their page."""
    DTYPE: tl.constexpr = qkv.dtype.element_ty
    ANGLE: tl.constexpr = tl.float32 if WIDE else DTYPE
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, LANES)[None, :]
    is_q = head < Q_HEADS
    is_v = head >= Q_HEADS + KV_HEADS
    live = (head < Q_HEADS + 2 * KV_HEADS) & (column < D)

    # A column turns with the one half a rotation away: read again, from cache, instead of being
    # passed between threads. Columns past the rotation are their own partners.
    first = column < HALF
    turns = column < 2 * HALF
    partner = tl.where(first, column + HALF, tl.where(turns, column - HALF, column))

    source = qkv + token * row_stride + head * D
    raw = tl.load(source + column, mask=live, other=0.0)
    x = raw.to(tl.float32)
    y = raw
    if VARIANT != "none":
        # A lane holds one element here, and fma(x, x, +0) is x * x.
        mean = tl.math.div_rn(adjacent_sum(x * x, HEADS, LANES), D * 1.0)
        r = tl.math.div_rn(1.0, tl.math.sqrt_rn(mean + eps))[:, None]
        w = _head_weight(q_norm, k_norm, column, is_q, D)
        y = rms_scaled(x, r, w, VARIANT, DTYPE)
        x = y.to(tl.float32)
    if HALF > 0:
        p = tl.load(source + partner, mask=live, other=0.0).to(tl.float32)
        if VARIANT != "none":
            w = _head_weight(q_norm, k_norm, partner, is_q, D)
            p = rms_scaled(p, r, w, VARIANT, DTYPE).to(tl.float32)
        angle = tl.load(positions + token).to(tl.int64) * HALF + tl.where(first, column, partner)
        c = tl.load(cos + angle, mask=turns, other=0.0).to(ANGLE).to(tl.float32)
        s = tl.load(sin + angle, mask=turns, other=0.0).to(ANGLE).to(tl.float32)
        y = tl.where(turns, _turned(x, p, c, s, first, ANGLE).to(DTYPE), y)

    tl.store(out + (token * Q_HEADS + head) * D + column, y, mask=live & is_q)
    slot = tl.load(slots + token).to(tl.int64)
    page, place = slot // PAGE, slot % PAGE
    live &= slot >= 0
    k_row = k_cache + page * k_page + ((head - Q_HEADS) * PAGE + place) * D
    tl.store(k_row + column, y, mask=live & (head >= Q_HEADS) & (head < Q_HEADS + KV_HEADS))
    v_row = v_cache + page * v_page + ((head - Q_HEADS - KV_HEADS) * PAGE + place) * D
    tl.store(v_row + column, raw, mask=live & is_v)


@triton.jit
def _head_weight(q_norm, k_norm, column, is_q, D: tl.constexpr):
    """Return the norm weight of each head's columns, widened. [HEADS, LANES]"""
    q = tl.load(q_norm + column, mask=column < D, other=0.0).to(tl.float32)
    k = tl.load(k_norm + column, mask=column < D, other=0.0).to(tl.float32)
    return tl.where(is_q, q, k)


@triton.jit
def write_cache_kernel(
    k, v, slots, k_cache, v_cache,
    k_token, k_head, v_token, v_head, k_page, v_page,
    KV_HEADS: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr, LANES: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    """HEADS key and value heads of one token to their page."""
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


def rotate_and_cache(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    heads: int,
    kv_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    variant: str = "scale_rounded",
    wide_angles: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Norm and rotate a batch's queries and keys; write keys and values to their pages.

    A row's bits depend on nothing but the row, its position and the weights. RMS norm by N2 over
    each head where there are norm weights, then rotation by halves by rule 5 (rotate_half of
    transformers' modeling_llama), each rounding to the activation dtype as there.

    Args:
        qkv: [T, (heads + 2 * kv_heads) * D], float32, bfloat16 or float16: query, key and value
            heads side by side.
        positions: row of ``cos`` and ``sin`` for each token. [T] int32
        slots: where each token's keys and values go, -1 for nowhere; no two alike. [T] int32
        cos: [P, rotary / 2] float32 by position, contiguous; the first ``rotary`` columns of a
            head turn and the others pass. None: nothing turns.
        sin: as ``cos``.
        k_cache: [pages, kv_heads, 64, D] of qkv's dtype; pages apart, each contiguous.
        v_cache: as ``k_cache``.
        q_norm: weight of the norm over each query head, any float dtype, or None. [D]
        k_norm: the same of key heads; given where ``q_norm`` is.
        eps: of the norms.
        variant: of the norms, as ``norms.rms_norm`` has it.
        wide_angles: cos, sin and products stay binary32 and only the result rounds (OLMo 2's
            code), rather than each of them.
        out: [T, heads, D] of qkv's dtype, contiguous.

    Returns:
        The queries: ``out``, or a new tensor.

    Raises:
        ValueError: a shape, dtype or layout with no kernel.
    """
    check_float("qkv", qkv)
    tokens, width = qkv.shape if qkv.dim() == 2 else (0, 0)
    size, rest = divmod(width, heads + 2 * kv_heads)
    if qkv.dim() != 2 or rest or not size:
        columns = f"a multiple of {heads + 2 * kv_heads}"
        raise ValueError(f"qkv: got shape {tuple(qkv.shape)}, expected (T, {columns})")
    if size > MAX_LANES:
        raise ValueError(f"qkv: got heads of {size}, expected at most {MAX_LANES}")
    check_adjacent("qkv", qkv)
    for name, index in (("positions", positions), ("slots", slots)):
        _check_index(name, index, tokens)
    half = _half(cos, sin, size)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        _check_cache(name, cache, kv_heads, size, qkv.dtype)
    if (q_norm is None) != (k_norm is None):
        raise ValueError("k_norm: got one of q_norm and k_norm, expected both or neither")
    if variant not in VARIANTS:
        raise ValueError(
            f"variant: got {variant!r}, expected scale_rounded, round_scaled, one_plus"
        )
    check_vector("q_norm", q_norm, size)
    check_vector("k_norm", k_norm, size)
    out = output(out, qkv, (tokens, heads, size), qkv.dtype)
    if not tokens:
        return out
    block, warps = configuration(size, tokens)
    grid = (tokens, triton.cdiv(heads + 2 * kv_heads, block))
    rotate_and_cache_kernel[grid](
        qkv, positions, slots, cos, sin, k_cache, v_cache, q_norm, k_norm, out,
        qkv.stride(0), k_cache.stride(0), v_cache.stride(0), eps,
        Q_HEADS=heads, KV_HEADS=kv_heads, D=size, LANES=lanes_of(size), HALF=half, HEADS=block,
        VARIANT="none" if q_norm is None else variant, WIDE=wide_angles, num_warps=warps,
        **launch.OPTIONS,
    )  # fmt: skip
    return out


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
    _check_index("slots", slots, tokens)
    _check_cache("k_cache", k_cache, kv_heads, k_dim, k.dtype)
    _check_cache("v_cache", v_cache, kv_heads, v_dim, k.dtype)
    if not tokens:
        return
    lanes = triton.next_power_of_2(max(k_dim, v_dim))
    block, warps = configuration(lanes, tokens)
    block = min(block, triton.next_power_of_2(kv_heads))
    write_cache_kernel[(tokens, triton.cdiv(kv_heads, block))](
        k, v, slots, k_cache, v_cache,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1), k_cache.stride(0), v_cache.stride(0),
        KV_HEADS=kv_heads, K_DIM=k_dim, V_DIM=v_dim, LANES=lanes, HEADS=block,
        num_warps=warps, **launch.OPTIONS,
    )  # fmt: skip


def _half(cos: Tensor | None, sin: Tensor | None, size: int) -> int:
    """Half the columns of a head that turn."""
    if cos is None or sin is None:
        if cos is not sin:
            raise ValueError("sin: got one of cos and sin, expected both or neither")
        return 0
    if cos.dim() != 2 or not 0 < 2 * cos.shape[1] <= size:
        raise ValueError(f"cos: got shape {tuple(cos.shape)}, expected (P, at most {size // 2})")
    check_shape("sin", sin, cos.shape)
    for name, table in (("cos", cos), ("sin", sin)):
        check_dtype(name, table, torch.float32)
        if not table.is_contiguous():
            raise ValueError(f"{name}: got strides {table.stride()}, expected a contiguous tensor")
    return cos.shape[1]


def _check_index(name: str, index: Tensor, tokens: int) -> None:
    check_shape(name, index, (tokens,))
    check_dtype(name, index, torch.int32)
    check_adjacent(name, index)


def _check_cache(name: str, cache: Tensor, kv_heads: int, size: int, dtype: torch.dtype) -> None:
    expected = (kv_heads, PAGE_SIZE, size)
    if cache.dim() != 4 or tuple(cache.shape[1:]) != expected:
        shape = ", ".join(map(str, expected))
        raise ValueError(f"{name}: got shape {tuple(cache.shape)}, expected (pages, {shape})")
    check_dtype(name, cache, dtype)
    if cache.stride()[1:] != (PAGE_SIZE * size, size, 1):
        raise ValueError(f"{name}: got strides {cache.stride()}, expected contiguous pages")
