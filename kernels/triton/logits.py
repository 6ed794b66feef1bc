"""What is read off logits: argmax and checksum in one pass, softmax and log_softmax.

Rules 6 (with N6), 7 and 8. Integer sums and maxima have no order, so ``summarise`` may split a row
over as many programs as the machine has room for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detinfer.kernels import constants as c
from detinfer.kernels.triton import launch
from detinfer.kernels.triton.arguments import check_adjacent, check_dtype, output
from detinfer.kernels.triton.arguments import rows as as_rows
from detinfer.kernels.triton.numeric import INF, MAGNITUDE, adjacent_sum, exp32, lanes_of, log32
from detinfer.kernels.triton.overlap import take_turn

GAMMA = tl.constexpr(c.SPLITMIX_GAMMA)
MUL1 = tl.constexpr(c.SPLITMIX_MUL1)
MUL2 = tl.constexpr(c.SPLITMIX_MUL2)
KEY1 = tl.constexpr(c.CHECKSUM_KEYS[0])
KEY2 = tl.constexpr(c.CHECKSUM_KEYS[1])
QUIET_NAN = tl.constexpr(0x7FC00000)
LOW_WORD = tl.constexpr(0xFFFFFFFF)
NOT_FINITE = tl.constexpr(2**63 - 1)
NOTHING = tl.constexpr(-(2**63))

SLICE = 1024  # logits of a program: one row of 151936 fills a machine of 132 processors
MANY_TILE = 1024  # elements of a softmax tile of short rows


@triton.jit
def _splitmix64(z):
    z += GAMMA
    z = (z ^ (z >> 30)) * MUL1
    z = (z ^ (z >> 27)) * MUL2
    return z ^ (z >> 31)


@triton.jit
def _order_key(x, bits, column):
    """Integers in the order of (logit, lowest id): the largest is argmax's, if not -Inf."""
    bits = tl.where(x == 0, 0, bits)  # -0 equals +0
    value = bits ^ ((bits >> 31) & MAGNITUDE)
    key = (value.to(tl.int64) << 32) + (LOW_WORD - column.to(tl.int64))
    key = tl.where(x > -INF, key, NOTHING)
    return tl.where(x < INF, key, NOT_FINITE)  # not of a NaN


@triton.jit
def summarise_kernel(
    x,
    partial,
    V,
    stride,
    slices,
    SLICE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Return the largest key and the two sums of a slice of a row. -> partial [L, slices, 3]"""
    take_turn(OVERLAP)
    row = (tl.program_id(0) // slices).to(tl.int64)
    column = tl.program_id(0) % slices * SLICE + tl.arange(0, SLICE)
    mask = column < V
    v = tl.load(x + row * stride + column, mask=mask, other=0.0)
    bits = v.to(tl.int32, bitcast=True)
    key = tl.max(tl.where(mask, _order_key(v, bits, column), NOTHING), 0)

    bits = tl.where(v == v, bits, QUIET_NAN).to(tl.uint32, bitcast=True)
    z = bits.to(tl.uint64) + (column.to(tl.uint64) << 32)
    sum1 = tl.sum(tl.where(mask, _splitmix64(z + KEY1), 0), 0)  # order-free: integers
    sum2 = tl.sum(tl.where(mask, _splitmix64(z + KEY2), 0), 0)  # order-free: integers

    place = partial + tl.program_id(0).to(tl.int64) * 3
    tl.store(place, key)
    tl.store(place + 1, sum1.to(tl.int64, bitcast=True))
    tl.store(place + 2, sum2.to(tl.int64, bitcast=True))


@triton.jit
def combine_kernel(
    partial,
    out,
    slices,
    SLICES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Return a row's slices together. partial [L, slices, 3] -> out [L, 3]"""
    take_turn(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, SLICES)
    mask = index < slices
    place = partial + (row * slices + index) * 3
    key = tl.max(tl.load(place, mask=mask, other=NOTHING), 0)
    sum1 = tl.sum(tl.load(place + 1, mask=mask, other=0), 0)  # order-free: integers
    sum2 = tl.sum(tl.load(place + 2, mask=mask, other=0), 0)  # order-free: integers
    none = (key == NOT_FINITE) | (key == NOTHING)
    tl.store(out + row * 3, tl.where(none, -1, LOW_WORD - (key & LOW_WORD)))
    tl.store(out + row * 3 + 1, sum1)
    tl.store(out + row * 3 + 2, sum2)


@triton.jit(do_not_specialize=["rows"])  # no compilation for another batch size
def softmax_kernel(
    x, out, rows, inner, x_outer, x_inner,
    V: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, LOG: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Rows of x; row i begins at (i / inner, i % inner)."""
    take_turn(OVERLAP)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row[:, None] < rows
    source = x + (row // inner * x_outer + row % inner * x_inner)[:, None]
    lane = tl.arange(0, LANES)[None, :]

    top = tl.full((ROWS, LANES), -INF, tl.float32)
    for start in tl.range(0, V, LANES, loop_unroll_factor=4):
        mask = live & (start + lane < V)
        v = tl.load(source + start + lane, mask=mask, other=-INF).to(tl.float32)
        # A NaN spoils its row's sum whatever the maximum is, and of two zeros either will do.
        top = tl.maximum(top, tl.where(v == v, v, -INF))
    m = tl.max(top, 1)[:, None]

    lanes = tl.zeros((ROWS, LANES), tl.float32)
    for start in tl.range(0, V, LANES, loop_unroll_factor=4):
        mask = live & (start + lane < V)
        v = tl.load(source + start + lane, mask=mask, other=-INF).to(tl.float32)
        lanes += tl.where(mask, exp32(v - m), 0.0)
    z = adjacent_sum(lanes, ROWS, LANES)[:, None]
    log_z = log32(z)

    for start in tl.range(0, V, LANES, loop_unroll_factor=4):
        mask = live & (start + lane < V)
        v = tl.load(source + start + lane, mask=mask, other=-INF).to(tl.float32)
        y = v - m - log_z if LOG else tl.math.div_rn(exp32(v - m), z)
        tl.store(out + (row[:, None] * V + (start + lane)), y, mask=mask)


def summarise(logits: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Argmax and checksum of each row of raw logits (rules 7 and 8), in one pass.

    A row's bits depend on nothing but the row. Scratch of three integers to 1024 logits comes
    from the caching allocator.

    Args:
        logits: [L, V] float32; elements of a row adjacent.
        out: [L, 3] int64, contiguous.

    Returns:
        ``out``, or a new tensor: the lowest id of the largest logit, -1 for a row with a NaN or
        +Inf, or of nothing but -Inf; then the two sums, their 64 bits read as signed.

    Raises:
        ValueError: a shape, dtype or layout with no kernel.
    """
    check_dtype("logits", logits, torch.float32)
    if logits.dim() != 2 or not 0 < logits.shape[1] < 2**31 - SLICE:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected (L, V), V at least 1")
    check_adjacent("logits", logits)
    count, size = logits.shape
    out = output(out, logits, (count, 3), torch.int64)
    if not count:
        return out
    slices = triton.cdiv(size, SLICE)
    partial = torch.empty((count, slices, 3), dtype=torch.int64, device=logits.device)
    summarise_kernel[(count * slices,)](
        logits,
        partial,
        size,
        logits.stride(0),
        slices,
        SLICE=SLICE,
        num_warps=4,
        **launch.options(logits.device),
    )
    combine_kernel[(count,)](
        partial,
        out,
        slices,
        SLICES=triton.next_power_of_2(slices),
        num_warps=1,
        **launch.options(logits.device),
    )
    return out


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension as float32 (rule 6, N6).

    A row's bits depend on nothing but the row.

    Args:
        x: [..., V], float32, bfloat16 or float16; elements of a row adjacent.

    Raises:
        ValueError: a dtype or layout with no kernel.
    """
    return _softmax(x, log=False)


def log_softmax(x: Tensor) -> Tensor:
    """Logarithm of ``softmax``, in the contract's own order; all else as there."""
    return _softmax(x, log=True)


def configuration(size: int, rows: int) -> tuple[int, int]:
    """Rows of a softmax program and its warps. Free: neither changes a bit."""
    lanes = lanes_of(size)
    if rows > 1 and lanes <= MANY_TILE // 4:
        return MANY_TILE // lanes, 4
    return 1, 8 if size > lanes else max(1, lanes // 256)


def _softmax(x: Tensor, log: bool) -> Tensor:
    out = output(None, x, x.shape, torch.float32)
    x, rows, inner, x_outer, x_inner = as_rows("x", x)
    size = x.shape[-1]
    if not out.numel():
        return out
    block, warps = configuration(size, rows)
    softmax_kernel[(triton.cdiv(rows, block),)](
        x, out, rows, inner, x_outer, x_inner, V=size, LANES=lanes_of(size), ROWS=block, LOG=log,
        num_warps=warps, **launch.options(x.device),
    )  # fmt: skip
    return out
