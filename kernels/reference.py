"""The arithmetic contract in plain NumPy: slow, obvious, and the oracle of every kernel.

Written from docs/arithmetic.md, rule by rule, and from nothing else. Values of a 16-bit dtype come
in as the binary32 numbers they widen to; ``dtype`` names the activation dtype results round to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from detinfer.kernels import constants as c

Array = npt.NDArray[np.float32]
Real = npt.ArrayLike
F32 = np.float32

LANES = 64
BLOCK = 64
SEGMENT = 512

# Overflow to infinity, NaN and the like are results here, not accidents.
_ieee = np.errstate(all="ignore")


@_ieee
def fma(a: Real, b: Real, addend: Real) -> Array:
    """Compute ``a * b + addend`` with one rounding to binary32.

    The product of two binary32 is exact in binary64. TwoSum then gives the sum and its error, and
    rounding the sum to odd makes the last rounding, to binary32, the only one that counts
    (Boldo and Melquiond 2008).
    """
    product = _widen(a) * _widen(b)
    other = _widen(addend)
    total = np.asarray(product + other)
    shadow = total - product
    error = (product - (total - shadow)) + (other - shadow)
    bits = total.view(np.int64)
    to_odd = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    away_from_zero = (error > 0) == (total > 0)
    bits = bits + np.where(to_odd, np.where(away_from_zero, 1, -1), 0)
    return bits.view(np.float64).astype(F32)


def _widen(x: Real) -> npt.NDArray[np.float64]:
    return np.asarray(x, F32).astype(np.float64)


def horner(coefficients: Sequence[float], x: Array) -> Array:
    """Return the polynomial at x, highest power first, one fma a step."""
    p = np.full(x.shape, coefficients[0], F32)
    for coefficient in coefficients[1:]:
        p = fma(p, x, coefficient)
    return p


@_ieee
def halving_tree(lanes: Array) -> Array:
    """Sum over the last axis, a power of two long, by halves. [..., L] -> [...]."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


@_ieee
def lane_sum(x: Array, squares: bool = False) -> Array:
    """Return the 64-lane sum of x, or of its squares by fma. [..., D] -> [...]."""
    lanes = np.zeros((*x.shape[:-1], LANES), F32)
    for start in range(0, x.shape[-1], LANES):
        part = x[..., start : start + LANES]
        lane = lanes[..., : part.shape[-1]]
        lane[...] = fma(part, part, lane) if squares else lane + part
    return halving_tree(lanes)


# Rule 0


def round_bf16(x: Array) -> Array:
    """Round to bfloat16, to nearest even, by integers; the result is widened again."""
    bits = np.asarray(x, F32).view(np.uint32)
    upper = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    upper = np.where(np.isnan(x), np.uint32(0x7FC0), upper)
    return (upper << 16).astype(np.uint32).view(F32)


@_ieee
def round_to(x: Array, dtype: str) -> Array:
    """Round binary32 values to the activation dtype and widen them again."""
    if dtype == "bfloat16":
        return round_bf16(x)
    if dtype == "float16":
        return x.astype(np.float16).astype(F32)
    return x


# Rule 1


def segments(k: int) -> int:
    """Return S, by which a row of k is cut."""
    return next((s for s in (8, 4, 2) if k % (64 * s) == 0), 1)


@_ieee
def linear(x: Array, weight: Array, bias: Array | None = None, dtype: str = "float32") -> Array:
    """``x @ weight.T + bias``. x [M, K], weight [N, K], bias [N] -> [M, N]."""
    (m, k), n = x.shape, weight.shape[0]
    s = segments(k)
    x = x.reshape(m, 1, s, -1)
    weight = weight.reshape(1, n, s, -1)
    sums = np.zeros((m, n, s), F32)
    for i in range(k // s):
        sums = fma(x[..., i], weight[..., i], sums)
    while sums.shape[-1] > 1:
        sums = sums[..., 0::2] + sums[..., 1::2]
    y = sums[..., 0]
    return round_to(y if bias is None else y + bias, dtype)


# Rule 2


@_ieee
def rms_norm(
    x: Array, weight: Array | None, eps: float, variant: str, dtype: str = "float32"
) -> Array:
    """RMS norm over the last axis; ``variant`` as in the contract's table. x [..., D]."""
    q = lane_sum(x, squares=True)
    r = F32(1) / np.sqrt(q / F32(x.shape[-1]) + F32(eps))
    return rms_scale(x * r[..., None], weight, variant, dtype)


@_ieee
def rms_scale(scaled: Array, weight: Array | None, variant: str, dtype: str) -> Array:
    """Return a normalised row times its weight, rounded where the variant's family rounds."""
    if weight is None:
        return round_to(scaled, dtype)
    if variant == "scale_rounded":
        return round_to(round_to(scaled, dtype) * weight, dtype)
    if variant == "round_scaled":
        return round_to(scaled * weight, dtype)
    if variant == "one_plus":
        return round_to(scaled * (F32(1) + weight), dtype)
    raise ValueError(f"variant: got {variant!r}")


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
    if bias is not None:
        y = y + bias
    return round_to(y, dtype)


# Rule 3


def cached(x: Array, dtype: str) -> Array:
    """Return what pages in float32 or bfloat16 give back of keys or values."""
    if dtype == "float32":
        return x
    rounded = round_bf16(x)
    return np.where(np.isfinite(rounded), rounded, F32(np.nan))


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
    cache_dtype: str = "float32",
) -> Array:
    """Causal attention of one sequence's query rows over its keys.

    q [T, H, Dk] at ``positions`` [T]; k [S, Hkv, Dk] and v [S, Hkv, Dv] by absolute position;
    sinks [H]; window 0 sees every earlier key; pages in ``cache_dtype``. -> [T, H, Dv].
    """
    k, v = cached(k, cache_dtype), cached(v, cache_dtype)
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    # Keys past the last stand for a stale page: no result may depend on them.
    padding = ((0, -len(k) % BLOCK), (0, 0), (0, 0))
    k = np.repeat(np.pad(k, padding, constant_values=np.nan), group, axis=1)
    v = np.repeat(np.pad(v, padding, constant_values=np.nan), group, axis=1)
    shape = (rows, heads, v.shape[2])

    merged = np.full(rows, sinks is not None)
    m = np.zeros(shape[:2], F32) if sinks is None else np.broadcast_to(sinks, shape[:2]).copy()
    l: Array = np.ones(shape[:2], F32)  # noqa: E741
    o: Array = np.zeros(shape, F32)
    for start in range(0, len(k), SEGMENT):
        keys = np.arange(start, min(start + SEGMENT, len(k)))
        visible = keys <= positions[:, None]
        if window:
            visible &= keys > positions[:, None] - window
        live = np.flatnonzero(visible.any(axis=1))
        segment = _segment(q[live], k[keys], v[keys], visible[live], F32(scale), F32(softcap))
        m[live], l[live], o[live] = _merge(merged[live], (m[live], l[live], o[live]), segment)
        merged[live] = True
    return round_to(o / l[..., None], dtype)


def _segment(
    q: Array, k: Array, v: Array, visible: npt.NDArray[np.bool_], scale: F32, softcap: F32
) -> tuple[Array, Array, Array]:
    """(m, l, o) of one segment for rows that see at least one of its keys."""
    rows, heads, _ = q.shape
    m = np.zeros((rows, heads), F32)
    l = np.zeros((rows, heads), F32)  # noqa: E741
    o = np.zeros((rows, heads, v.shape[2]), F32)
    begun = np.zeros(rows, bool)
    for start in range(0, len(k), BLOCK):
        block = slice(start, start + BLOCK)
        live = np.flatnonzero(visible[:, block].any(axis=1))
        seen = visible[live, None, block]  # [R, 1, 64]
        first = ~begun[live, None]  # [R, 1]
        s = _scores(q[live], k[block], scale, softcap)  # [R, H, 64]
        top = np.where(seen, s, F32(-np.inf)).max(axis=-1)
        m_new = np.where(first, top, np.maximum(m[live], top))
        alpha = np.where(first, F32(1), exp32(m[live] - m_new))
        p = np.where(seen, exp32(s - m_new[..., None]), F32(0))
        b = halving_tree(p)
        l[live] = np.where(first, b, fma(l[live], alpha, b))
        chain = np.where(first[..., None], F32(0), o[live] * alpha[..., None])
        for j in range(BLOCK):
            step = fma(p[..., j, None], v[start + j], chain)
            chain = np.where(seen[..., j, None], step, chain)
        m[live], o[live], begun[live] = m_new, chain, True
    return m, l, o


def _scores(q: Array, k: Array, scale: F32, softcap: F32) -> Array:
    """Scaled, capped scores. q [R, H, Dk], k [64, H, Dk] -> [R, H, 64]."""
    chain = np.zeros((*q.shape[:2], len(k)), F32)
    for d in range(q.shape[2]):
        chain = fma(q[..., d, None], k[..., d].T, chain)
    s = chain * scale
    return softcap * tanh32(s / softcap) if softcap else s


def _merge(
    merged: npt.NDArray[np.bool_],
    one: tuple[Array, Array, Array],
    two: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """Segment two added to what is merged so far; copied where nothing is."""
    (m1, l1, o1), (m2, l2, o2) = one, two
    m = np.maximum(m1, m2)
    a1, a2 = exp32(m1 - m), exp32(m2 - m)
    l = fma(l2, a2, l1 * a1)  # noqa: E741
    o = fma(o2, a2[..., None], o1 * a1[..., None])
    yes = merged[:, None]
    return np.where(yes, m, m2), np.where(yes, l, l2), np.where(yes[..., None], o, o2)


# Rule 4


@_ieee
def exp32(x: Real) -> Array:
    """e^x."""
    x = np.asarray(x, F32)
    inside = np.where((x >= F32(c.EXP_LOW)) & (x <= F32(c.EXP_HIGH)), x, F32(0))
    z = fma(inside, c.LOG2E, c.ROUND_MAGIC)
    n = z - F32(c.ROUND_MAGIC)
    i = z.view(np.int32) - F32(c.ROUND_MAGIC).view(np.int32)
    r = fma(-n, c.LN2_HI, inside)
    r = fma(-n, c.LN2_LO, r)
    t = r * r
    y = F32(1) + fma(t, horner(c.EXP, r), r)
    i1 = i >> 1
    y = (y * np.ldexp(F32(1), i1)) * np.ldexp(F32(1), i - i1)
    y = np.where(x < F32(c.EXP_LOW), F32(0), y)
    y = np.where(x > F32(c.EXP_HIGH), F32(np.inf), y)
    return np.where(np.isnan(x), x, y)


@_ieee
def log32(x: Real) -> Array:
    """Natural logarithm."""
    x = np.asarray(x, F32)
    subnormal = x < F32(2.0**-126)
    scaled = np.where(subnormal, x * F32(2.0**25), x)
    bits = scaled.view(np.int32)
    k = (bits - np.int32(c.SQRT_HALF_BITS)) >> 23
    e = (np.where(subnormal, -25, 0) + k).astype(F32)
    f = (bits - (k << 23)).view(F32) - F32(1)
    t = f * f
    y = (horner(c.LOG, f) * f) * t
    y = fma(e, c.LN2_LO, y)
    y = fma(-0.5, t, y)
    y = fma(e, c.LN2_HI, f + y)
    y = np.where(x == 0, F32(-np.inf), y)
    y = np.where(np.isposinf(x), F32(np.inf), y)
    return np.where(np.isnan(x) | (x < 0), F32(np.nan), y)


@_ieee
def tanh32(x: Real) -> Array:
    """Hyperbolic tangent."""
    x = np.asarray(x, F32)
    a = np.abs(x)
    z = x * x
    small = fma(z * horner(c.TANH, z), x, x)
    large = np.copysign(F32(1) - F32(2) / (exp32(a + a) + F32(1)), x)
    return np.where(a < F32(c.TANH_SMALL), small, large)


@_ieee
def erf32(x: Real) -> Array:
    """Error function."""
    x = np.asarray(x, F32)
    a = np.abs(x)
    small = x * horner(c.ERF, x * x)
    t = F32(1) / fma(0.5, a, 1)
    middle = np.copysign(F32(1) - exp32(-(a * a)) * horner(c.ERFC, t), x)
    y = np.where(a < 1, small, middle)
    y = np.where(a >= F32(c.ERF_ONE), np.copysign(F32(1), x), y)
    return np.where(np.isnan(x), x, y)


@_ieee
def sigmoid(x: Real) -> Array:
    """1 / (1 + e^-x)."""
    return F32(1) / (F32(1) + exp32(-np.asarray(x, F32)))


@_ieee
def silu(x: Real) -> Array:
    """SiLU: x / (1 + e^-x)."""
    x = np.asarray(x, F32)
    y: Array = x / (F32(1) + exp32(-x))
    return y


@_ieee
def softplus(x: Real) -> Array:
    """log(1 + e^x), and x itself where that is the same."""
    x = np.asarray(x, F32)
    return np.where(x > F32(c.SOFTPLUS_LINEAR), x, log32(F32(1) + exp32(x)))


@_ieee
def gelu(x: Real) -> Array:
    """GELU by erf."""
    x = np.asarray(x, F32)
    return (F32(0.5) * x) * (F32(1) + erf32(x * F32(c.SQRT_HALF)))


@_ieee
def gelu_tanh(x: Real) -> Array:
    """GELU by its tanh approximation."""
    x = np.asarray(x, F32)
    u = fma((x * x) * x, c.GELU_CUBIC, x)
    return (F32(0.5) * x) * (F32(1) + tanh32(F32(c.SQRT_2_OVER_PI) * u))


ACTIVATIONS: dict[str, Callable[[Real], Array]] = {
    "erf": erf32,
    "exp": exp32,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "log": log32,
    "sigmoid": sigmoid,
    "silu": silu,
    "softplus": softplus,
    "tanh": tanh32,
}


@_ieee
def gated(name: str, gate: Array, up: Array, dtype: str = "float32") -> Array:
    """``silu_mul`` and ``gelu_tanh_mul``: the rounded activation of gate, times up."""
    return round_to(round_to(ACTIVATIONS[name](gate), dtype) * up, dtype)


# Rule 5


@_ieee
def rope(x: Array, cos: Array, sin: Array, dtype: str = "float32") -> Array:
    """Rotate the two halves of the last axis. x [..., D], cos and sin [..., D / 2]."""
    x1, x2 = np.split(x, 2, axis=-1)
    cos, sin = round_to(cos, dtype), round_to(sin, dtype)

    def turn(a: Array, b: Array) -> Array:
        return round_to(round_to(a * cos, dtype) + round_to(b * sin, dtype), dtype)

    return np.concatenate([turn(x1, -x2), turn(x2, x1)], axis=-1)


# Rule 6


@_ieee
def log_softmax(x: Array, total: Callable[[Array], Array] = lane_sum) -> Array:
    """Logarithm of the softmax over the last axis; ``total`` is the profile's sum."""
    shifted: Array = x - x.max(axis=-1, keepdims=True)
    return shifted - log32(total(exp32(shifted)))[..., None]


@_ieee
def softmax(x: Array, total: Callable[[Array], Array] = lane_sum) -> Array:
    """Softmax over the last axis; ``total`` is the profile's sum."""
    e = exp32(x - x.max(axis=-1, keepdims=True))
    y: Array = e / total(e)[..., None]
    return y


# Rule 10


@_ieee
def embedding(
    hidden: Array, pooling: str = "mean", normalize: bool = True, dimensions: int | None = None
) -> Array:
    """Return one vector of a prompt's final hidden states [T, D] -> [dimensions]."""
    vector: Array = hidden[-1]
    if pooling == "mean":
        vector = hidden[0]
        for state in hidden[1:]:
            vector = vector + state
        vector = vector / F32(len(hidden))
    vector = vector[:dimensions]
    if normalize:
        vector = rms_norm(vector, None, 0.0, "scale_rounded") / np.sqrt(F32(vector.size))
    return vector


@_ieee
def score(first: Array, second: Array) -> Array:
    """Return how alike two prompts are, by their normalised vectors [..., D], [..., D] -> [...]."""
    return lane_sum(first * second)
