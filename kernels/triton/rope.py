"""Per-head norms, rotary embedding and the cache write of a batch, in one launch (rules 2 and 5).

Pages and slots are as ``cache`` has them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detinfer.kernels.triton import launch
from detinfer.kernels.triton.arguments import (
    check_adjacent,
    check_dtype,
    check_float,
    check_shape,
    check_vector,
    output,
)
from detinfer.kernels.triton.cache import PAGE, check_cache, check_index, configuration
from detinfer.kernels.triton.numeric import (
    MAX_LANES,
    VARIANTS,
    adjacent_sum,
    lanes_of,
    rms_scaled,
)
from detinfer.kernels.triton.overlap import take_turn


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
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one token: queries to ``out``, keys and values to their page."""
    take_turn(OVERLAP)
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
        check_index(name, index, tokens)
    half = _half(cos, sin, size)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_cache(name, cache, kv_heads, size, qkv.dtype)
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
        **launch.options(qkv.device),
    )  # fmt: skip
    return out


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
