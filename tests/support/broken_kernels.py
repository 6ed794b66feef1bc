"""Kernels that the audit must flag, each by one rule, and some that it must not.

A case is named after the rule it breaks, or the rules, joined by a plus. Workers of the audit
import this module by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import triton
import triton.language as tl

from detinfer.compile_audit.cases import Case
from detinfer.kernels.triton.overlap import take_turn


@triton.jit
def matmul(
    x,
    w,
    y,
    k,
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    take_turn(OVERLAP)
    rows, cols, depth = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, k, BK):
        a = tl.load(x + rows[:, None] * k + (start + depth)[None, :])
        b = tl.load(w + cols[:, None] * k + (start + depth)[None, :])
        acc = tl.dot(a, b.T, acc, input_precision="ieee")
    tl.store(y + rows[:, None] * N + cols[None, :], acc.to(y.dtype.element_ty))


@triton.jit
def matmul_tma(
    x,
    w,
    y,
    k,
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    take_turn(OVERLAP)
    rows, cols = tl.arange(0, BM), tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, k, BK):
        acc = tl.dot(x.load([0, start]), w.load([0, start]).T, acc, input_precision="ieee")
    tl.store(y + rows[:, None] * N + cols[None, :], acc.to(y.dtype.element_ty))


@triton.jit
def specialised(
    x,
    w,
    y,
    k,
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    take_turn(OVERLAP)
    rows, cols = tl.arange(0, BM), tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for step in tl.range(0, tl.cdiv(k, BK), warp_specialize=True):
        start = step * BK
        acc = tl.dot(x.load([0, start]), w.load([0, start]).T, acc, input_precision="ieee")
    tl.store(y + rows[:, None] * N + cols[None, :], acc.to(y.dtype.element_ty))


@triton.jit
def default_precision(
    x,
    w,
    y,
    k,
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    take_turn(OVERLAP)
    rows, cols, depth = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, k, BK):
        a = tl.load(x + rows[:, None] * k + (start + depth)[None, :])
        b = tl.load(w + cols[:, None] * k + (start + depth)[None, :])
        acc = tl.dot(a, b.T, acc)
    tl.store(y + rows[:, None] * N + cols[None, :], acc)


@triton.jit
def two_accumulators(
    x,
    w,
    y,
    k,
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    take_turn(OVERLAP)
    rows, cols, depth = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    even = tl.zeros((BM, BN), tl.float32)
    odd = tl.zeros((BM, BN), tl.float32)
    for start in range(0, k, 2 * BK):
        a = tl.load(x + rows[:, None] * k + (start + depth)[None, :])
        b = tl.load(w + cols[:, None] * k + (start + depth)[None, :])
        even = tl.dot(a, b.T, even, input_precision="ieee")
        a = tl.load(x + rows[:, None] * k + (start + BK + depth)[None, :])
        b = tl.load(w + cols[:, None] * k + (start + BK + depth)[None, :])
        odd = tl.dot(a, b.T, odd, input_precision="ieee")
    tl.store(y + rows[:, None] * N + cols[None, :], (even + odd).to(y.dtype.element_ty))


@triton.jit
def bytes_widened(
    x,
    w,
    y,
    k,
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    take_turn(OVERLAP)
    rows, cols, depth = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, k, BK):
        a = tl.load(x + rows[:, None] * k + (start + depth)[None, :])
        b = tl.load(w + cols[:, None] * k + (start + depth)[None, :]).to(tl.bfloat16)
        acc = tl.dot(a, b.T, acc, input_precision="ieee")
    tl.store(y + rows[:, None] * N + cols[None, :], acc.to(y.dtype.element_ty))


@triton.jit
def paged(x, table, pages, y, blocks, AHEAD: tl.constexpr, OVERLAP: tl.constexpr):
    """A product with rows found by page; the page's id is known a pass ahead, or is not."""
    take_turn(OVERLAP)
    rows, cols, depth = tl.arange(0, 64), tl.arange(0, 64), tl.arange(0, 64)
    acc = tl.zeros((64, 64), tl.float32)
    a = tl.load(x + rows[:, None] * 64 + depth[None, :])
    page = tl.load(table)
    for block in range(blocks):
        if AHEAD:
            ahead = tl.load(table + block + 1)
        else:
            page = tl.load(table + block)
            ahead = page
        b = tl.load(pages + page * 4096 + cols[:, None] * 64 + depth[None, :])
        acc = tl.dot(a, b.T, acc, input_precision="ieee")
        page = ahead
    tl.store(y + rows[:, None] * 64 + cols[None, :], acc.to(y.dtype.element_ty))


@triton.jit
def elementwise(x, y, z, OP: tl.constexpr, OVERLAP: tl.constexpr):
    take_turn(OVERLAP)
    at = tl.arange(0, 128)
    a, b = tl.load(x + at), tl.load(y + at)
    if OP == "fused":
        tl.store(z + at, tl.fma(a, b, a))
    elif OP == "two roundings":
        tl.store(z + at, a * b + a)
    elif OP == "divided":
        tl.store(z + at, a / b)
    elif OP == "rooted":
        tl.store(z + at, tl.sqrt(a))
    elif OP == "exact":
        tl.store(z + at, tl.math.div_rn(a, tl.math.sqrt_rn(b)))
    elif OP == "raised":
        tl.store(z + at, tl.exp2(a))
    elif OP == "atomic":
        tl.atomic_add(z + at, a)
    else:
        tl.atomic_max(z + at, a.to(tl.int32))


@triton.jit
def impatient(x, y, z, OP: tl.constexpr, OVERLAP: tl.constexpr):
    at = tl.arange(0, 128)
    a = tl.load(x + at)
    if OP != "never":
        take_turn(OVERLAP)
    tl.store(z + at, a + tl.load(y + at))


def tiles(name: str, kernel: object, m: int, n: int, k: int, **other: object) -> Case:
    dtype = other.setdefault("dtype", "bf16")
    types = {"x": f"*{dtype}", "w": f"*{dtype}", "y": f"*{dtype}", "k": "i32"}
    case = Case(
        name=name,
        kernel=kernel,
        signature=types,
        constants={"N": 256, "BM": m, "BN": n, "BK": k},
        aligned=frozenset(types),
    )
    return replace(case, **other)


def tma_tiles(name: str, kernel: object, m: int, n: int, k: int, **other: object) -> Case:
    case = tiles(name, kernel, m, n, k, **other)
    blocks = {"x": f"tensordesc<bf16[{m}, {k}]>", "w": f"tensordesc<bf16[{n}, {k}]>"}
    return replace(case, signature={**case.signature, **blocks}, aligned=frozenset("yk"))


def simple(name: str, op: str, dtype: str = "fp32", out: str = "fp32", **other: object) -> Case:
    types = {"x": f"*{dtype}", "y": f"*{dtype}", "z": f"*{out}"}
    return Case(
        name=name, kernel=elementwise, signature=types, constants={"OP": op}, dtype=dtype, **other
    )


def pages(name: str, ahead: bool) -> Case:
    types = {"x": "*bf16", "table": "*i32", "pages": "*bf16", "y": "*bf16", "blocks": "i32"}
    return Case(
        name=name,
        kernel=paged,
        signature=types,
        constants={"AHEAD": ahead},
        stages=4,
        mma="mma.sync",
        k_steps=4,
        buffers=3 * 64 * 64 * 2,
        aligned=frozenset(types),
    )


def cases(arch: int) -> Iterator[Case]:
    if arch == 100:
        yield tiles("clean tcgen05", matmul, 128, 64, 64, mma="tcgen05", k_steps=4, stages=3)
        yield tiles("chain", two_accumulators, 128, 64, 64, mma="tcgen05", k_steps=8)
        return
    if arch == 80:  # taken for gfx942
        yield tiles("clean gfx942", two_accumulators, 64, 64, 64, mma="mma.sync")
        yield simple("clean atomics", "atomic maximum of integers", "fp16", "i32")
        yield simple("float-atomics", "atomic")
        yield tiles("spills", matmul, 256, 256, 32, mma="mma.sync", warps=2)
        return
    if arch == 86:
        core = {"mma": "mma.sync", "k_steps": 4}
        wide = {**core, "warps": 8, "stages": 5}
        yield tiles("clean mma.sync", matmul, 64, 64, 64, stages=4, buffers=49152, **core)
        yield pages("clean pages", ahead=True)
        yield tiles("shared", matmul, 128, 128, 64, **wide)  # 128 KB of buffers
        bytes_ = tiles("k-step", bytes_widened, 64, 64, 64, **core)
        yield replace(bytes_, signature={**bytes_.signature, "w": "*i8"})
        yield tiles("chain", two_accumulators, 64, 64, 64, mma="mma.sync", k_steps=8)
        yield pages("pipeline", ahead=False)
        return
    core = {"mma": "wgmma", "k_steps": 4, "stages": 3}
    plain = {"mma": "fma", "dtype": "fp32", "k_steps": 16}
    yield tiles("clean wgmma", matmul, 128, 128, 64, warps=8, **core)
    yield tiles("clean fp16", matmul, 64, 128, 64, dtype="fp16", **core)
    yield tma_tiles("clean TMA", matmul_tma, 64, 64, 64, tma=True, **core)
    yield tiles("clean fma", matmul, 16, 32, 16, **plain)
    yield simple("clean tl.fma", "fused")
    yield simple("clean two roundings", "two roundings")
    yield simple("clean division", "exact")
    yield simple("clean atomics", "atomic maximum of integers", out="i32")
    yield tiles("spills", matmul, 128, 256, 64, **core)
    yield tiles("family", matmul, 8, 128, 64, **core)
    yield tiles("tf32", default_precision, 64, 64, 32, dtype="fp32", mma="wgmma", k_steps=4)
    yield tiles("tma", matmul, 64, 64, 64, tma=True, **core)
    yield tma_tiles("tma unplanned", matmul_tma, 64, 64, 64, **core)
    # Its result is stored by warps whose code stands before the wait of the others.
    yield tma_tiles("specialised+turn", specialised, 64, 64, 64, tma=True, **core)
    yield tiles("chain", two_accumulators, 64, 64, 64, mma="wgmma", k_steps=8)
    yield tiles("chain of fma", two_accumulators, 16, 32, 16, **{**plain, "k_steps": 32})
    yield simple("contraction", "two roundings", options={"enable_fp_fusion": True})
    yield simple("float-atomics", "atomic")
    yield simple("float-atomics bf16", "atomic", "bf16", "bf16")
    yield simple("approximate division", "divided")
    yield simple("approximate root", "rooted")
    yield simple("approximate power", "raised")
    yield simple("narrow", "two roundings", "bf16", "bf16")
    for when in ("after a load", "never"):
        yield replace(simple(f"turn taken {when}", when), kernel=impatient)
    yield tiles("clean alone, k-order", matmul, 64, 64, 64, weight="w", **core)
    yield tiles("clean alone, k-order of fma", matmul, 16, 32, 16, weight="w", **plain)
    yield replace(simple("compiles", "fused"), signature={"x": "*fp32", "y": "*fp32", "z": "i32"})
