"""Profile ``native`` of the arithmetic contract in plain NumPy: the oracle of the GPU kernels.

Written from docs/arithmetic.md, "Profile native"; what the two profiles share comes from
``reference.py``. A tensor core's sum is modelled bit by bit for finite values, after the published
models (arXiv 2511.10909, arXiv 2512.07004); the models are evidence, the device's own tests decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detinfer.kernels import reference
from detinfer.kernels.reference import Array, fma, round_to

F32 = np.float32

K_PAD = 128
MAX_LANES = 1024
BLOCK = 64
SEGMENT = 512
LOG2E = float(np.log2(np.e))

_ieee = np.errstate(all="ignore")


@dataclass(frozen=True)
class TensorCore:
    """How an architecture adds products: ``group`` of them and the accumulator at once.

    Each term is cut to so many digits below the largest exponent: of a product the sum of its
    factors', a subnormal's being the least its format has, and never under 2^-133. (An H200's sums
    of bfloat16 and float16, subnormals of both too, are these: ``benchmarks/gpu_suite.py``.)

    Attributes:
        bits: fraction bits kept of each term below the largest exponent.
        group: products in one sum.
    """

    bits: int
    group: int


HOPPER = TensorCore(bits=25, group=16)  # and Blackwell
AMPERE = TensorCore(bits=24, group=8)  # and Ada

_LEAST_EXPONENT = {"bfloat16": -126, "float16": -14, "float32": -126}
_LEAST_TOP = -133
_NONE = -1000  # stands for the exponent of zero
_ROW_CHUNK = 1 << 17  # products held at once: 1 MiB


@_ieee
def mma(a: Array, b: Array, c: Array, dtype: str, core: TensorCore = HOPPER) -> Array:
    """``c + a @ b`` as a chain of tensor-core sums, k ascending. a [M, K], b [K, N], c [M, N].

    Values of a and b are ``dtype``'s, widened to binary32; K is a multiple of the group.
    """
    step = max(1, _ROW_CHUNK // (core.group * max(1, b.shape[1])))
    rows = [
        _mma_rows(a[i : i + step], b, c[i : i + step], dtype, core) for i in range(0, len(a), step)
    ]
    return np.concatenate(rows) if rows else c.copy()


def _mma_rows(a: Array, b: Array, c: Array, dtype: str, core: TensorCore) -> Array:
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    exponents_a, exponents_b = _exponent(wide_a, dtype), _exponent(wide_b, dtype)
    for k in range(0, a.shape[1], core.group):
        group = slice(k, k + core.group)
        products = wide_a[:, group, None] * wide_b[None, group, :]
        exponents = exponents_a[:, group, None] + exponents_b[None, group, :]
        wide_c = c.astype(np.float64)
        top = np.maximum(exponents.max(axis=1), _exponent(wide_c, "float32"))
        top = np.maximum(top, _LEAST_TOP)
        scale = np.ldexp(1.0, core.bits - top)  # a power of two: products with it are exact
        plain = products.sum(axis=1) + wide_c  # what an infinity or NaN makes of it
        products *= scale[:, None, :]
        total = (np.trunc(products, out=products).sum(axis=1) + np.trunc(wide_c * scale)) / scale
        c = np.where(np.isfinite(plain), _toward_zero(total), plain.astype(F32)).astype(F32)
    return c


def _exponent(x: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[np.int16]:
    exponent = np.maximum(np.frexp(x)[1] - 1, _LEAST_EXPONENT[dtype])
    return np.where(x == 0, _NONE, exponent).astype(np.int16)


def _toward_zero(x: npt.NDArray[np.float64]) -> Array:
    nearest = x.astype(F32)
    return np.where(np.abs(nearest) > np.abs(x), np.nextafter(nearest, F32(0)), nearest)


def dot(a: Array, b: Array, c: Array, dtype: str, core: TensorCore = HOPPER) -> Array:
    """``c + a @ b`` by the dtype's chain: tensor cores, or one fma a product for float32."""
    if dtype != "float32":
        return mma(a, b, c, dtype, core)
    for k in range(a.shape[1]):
        c = fma(a[:, k, None], b[None, k], c)
    return c


@_ieee
def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    dtype: str = "float32",
    out_dtype: str | None = None,
    core: TensorCore = HOPPER,
) -> Array:
    """``x @ weight.T + bias``. x [M, K], weight [N, K], bias [N] -> [M, N]."""
    pad = ((0, 0), (0, -x.shape[1] % K_PAD))
    zero = np.zeros((len(x), len(weight)), F32)
    y = dot(np.pad(x, pad), np.pad(weight, pad).T, zero, dtype, core)
    return round_to(y if bias is None else y + bias, out_dtype or dtype)


@_ieee
def adjacent_tree(lanes: Array) -> Array:
    """Sum over the last axis, a power of two long, by neighbours. [..., L] -> [...]."""
    while lanes.shape[-1] > 1:
        lanes = lanes[..., 0::2] + lanes[..., 1::2]
    return lanes[..., 0]


def lanes_of(size: int) -> int:
    """Return the lane count of a row of ``size`` elements."""
    return min(MAX_LANES, 1 << (size - 1).bit_length())


@_ieee
def lane_sum(x: Array, squares: bool = False) -> Array:
    """Return the wide lane sum of x, or of its squares by fma. [..., D] -> [...]."""
    width = lanes_of(x.shape[-1])
    lanes = np.zeros((*x.shape[:-1], width), F32)
    for start in range(0, x.shape[-1], width):
        part = x[..., start : start + width]
        lane = lanes[..., : part.shape[-1]]
        lane[...] = fma(part, part, lane) if squares else lane + part
    return adjacent_tree(lanes)


@_ieee
def rms_norm(
    x: Array, weight: Array | None, eps: float, variant: str, dtype: str = "float32"
) -> Array:
    """RMS norm over the last axis. x [..., D]."""
    r = F32(1) / np.sqrt(lane_sum(x, squares=True) / F32(x.shape[-1]) + F32(eps))
    return reference.rms_scale(x * r[..., None], weight, variant, dtype)


@_ieee
def layer_norm(
    x: Array, weight: Array | None, bias: Array | None, eps: float, dtype: str = "float32"
) -> Array:
    """Layer norm over the last axis. x [..., D]."""
    size = F32(x.shape[-1])
    d = x - (lane_sum(x) / size)[..., None]
    variance = lane_sum(d, squares=True) / size
    y = d * (F32(1) / np.sqrt(variance + F32(eps)))[..., None]
    if weight is not None:
        y = y * weight
    return round_to(y if bias is None else y + bias, dtype)


@_ieee
def attention(
    q: Array,
    positions: npt.NDArray[Any],
    k: Array,
    v: Array,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Array | None = None,
    dtype: str = "float32",
    core: TensorCore = HOPPER,
) -> Array:
    """Causal attention of one sequence's query rows over its keys.

    q [T, H, Dk] at ``positions`` [T]; k [S, Hkv, Dk] and v [S, Hkv, Dv] by absolute position;
    sinks [H]; window 0 sees every earlier key. -> [T, H, Dv].
    """
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    pad = ((0, -len(k) % BLOCK), (0, 0), (0, 0))
    length, k, v = len(k), np.pad(k, pad), np.pad(v, pad)
    out = np.empty((len(q), heads, v.shape[2]), F32)
    for head in range(heads):
        sink = None if sinks is None else sinks[head]
        keys, values = k[:, head // group], v[:, head // group]
        out[:, head] = _attend(
            q[:, head], positions, keys, values, length, scale, window, softcap, sink, dtype, core
        )
    return round_to(out, dtype)


def _attend(
    q: Array,
    positions: npt.NDArray[Any],
    k: Array,
    v: Array,
    length: int,
    scale: float,
    window: int,
    softcap: float,
    sink: Any,
    dtype: str,
    core: TensorCore,
) -> Array:
    """One head's rows. q [T, Dk], k [S, Dk], v [S, Dv], S a multiple of 64 -> [T, Dv]."""
    q, k = _pad_depth(q), _pad_depth(k)
    rows = len(q)
    m = np.full(rows, -np.inf if sink is None else F32(sink) * F32(LOG2E), F32)
    l = np.full(rows, 0 if sink is None else 1, F32)  # noqa: E741
    o = np.zeros((rows, v.shape[1]), F32)
    for first in range(0, len(k), SEGMENT):
        part = (np.full(rows, -np.inf, F32), np.zeros(rows, F32), np.zeros_like(o))
        for start in range(first, min(first + SEGMENT, len(k)), BLOCK):
            keys = np.arange(start, start + BLOCK)
            visible = (keys <= positions[:, None]) & (keys < length)
            if window:
                visible &= keys > positions[:, None] - window
            c = dot(q, k[keys].T, np.zeros((rows, BLOCK), F32), dtype, core)
            s = np.where(visible, _score(c, scale, softcap), F32(-np.inf))
            part = _visit(*part, s, v[keys], dtype, core)
        m, l, o = _merge((m, l, o), part)  # noqa: E741
    return o / l[:, None] + F32(0)


def _pad_depth(x: Array) -> Array:
    """Zeros up to a power of two and at least 16 in the last axis."""
    width = max(16, 1 << (x.shape[1] - 1).bit_length())
    return np.pad(x, ((0, 0), (0, width - x.shape[1])))


def _score(c: Array, scale: float, softcap: float) -> Array:
    """Scores in base 2."""
    if not softcap:
        return c * F32(scale * LOG2E)
    t = exp2(c * F32(2 * scale / softcap * LOG2E))
    cap = F32(softcap * LOG2E)
    return cap - (F32(2) * cap) / (F32(1) + t)


def _visit(
    m: Array,
    l: Array,  # noqa: E741
    o: Array,
    s: Array,
    v: Array,
    dtype: str,
    core: TensorCore,
) -> tuple[Array, Array, Array]:
    """One block of 64 keys folded into a segment's (m, l, o)."""
    top = np.maximum(m, s.max(axis=1))
    base = np.where(np.isneginf(top), F32(0), top)
    alpha = exp2(m - base)
    p = exp2(s - base[:, None])
    l = fma(l, alpha, block_tree(p))  # noqa: E741
    o = dot(round_to(p, dtype), v, o * alpha[:, None], dtype, core)
    return top, l, o


def _merge(
    one: tuple[Array, Array, Array], two: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    (m1, l1, o1), (m2, l2, o2) = one, two
    m = np.maximum(m1, m2)
    base = np.where(np.isneginf(m), F32(0), m)
    a1, a2 = exp2(m1 - base), exp2(m2 - base)
    return m, fma(l2, a2, l1 * a1), fma(o2, a2[:, None], o1 * a1[:, None])


def block_tree(p: Array) -> Array:
    """Sum of a block's 64 weights: column bits 5, 4, 3, then 0, then 2, 1. [R, 64] -> [R]."""
    p = p.reshape(-1, 2, 2, 2, 2, 2, 2)  # bits 5, 4, 3, 2, 1, 0
    for axis in (1, 1, 1, 3, 1, 1):
        first, second = (np.take(p, i, axis=axis) for i in (0, 1))
        p = first + second
    return p


@_ieee
def exp2(x: Array) -> Array:
    """2^x as ``ex2.approx.ftz`` is modelled: correctly rounded, subnormal results to zero."""
    y = np.exp2(np.asarray(x, np.float64)).astype(F32)
    return np.where(y < F32(2.0**-126), F32(0), y)


def log_softmax(x: Array) -> Array:
    """Logarithm of the softmax over the last axis."""
    return reference.log_softmax(x, lane_sum)


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    return reference.softmax(x, lane_sum)
