"""What the kernels compute with: the contract's sums and elementary functions, as jit helpers.

docs/arithmetic.md, rule 4 and N2; the bits of ``reference.py`` and ``reference_native.py``. All
take and give binary32. Only exact rewritings differ from the contract's formulas, each with the
reason beside it; the bits of a NaN are free.

The compiler may do a sum or product of 16-bit values that is rounded to 16 bits at once in 16 bits.
That is exact too: binary32 has more than twice their digits, so rounding twice is rounding once
(Figueroa 1995).
"""

from __future__ import annotations

import triton
import triton.language as tl

from detinfer.kernels import constants as c

MAX_LANES = 1024  # of a sum over a row (N2)

LOG2E = tl.constexpr(c.LOG2E)
LN2_HI = tl.constexpr(c.LN2_HI)
LN2_LO = tl.constexpr(c.LN2_LO)
ROUND_MAGIC = tl.constexpr(c.ROUND_MAGIC)
EXP_LOW = tl.constexpr(c.EXP_LOW)
EXP_HIGH = tl.constexpr(c.EXP_HIGH)
EXP = tl.constexpr(c.EXP)
SQRT_HALF_BITS = tl.constexpr(c.SQRT_HALF_BITS)
LOG = tl.constexpr(c.LOG)
TANH_SMALL = tl.constexpr(c.TANH_SMALL)
TANH = tl.constexpr(c.TANH)
ERF = tl.constexpr(c.ERF)
ERFC = tl.constexpr(c.ERFC)
ERF_ONE = tl.constexpr(c.ERF_ONE)
SQRT_HALF = tl.constexpr(c.SQRT_HALF)
SQRT_2_OVER_PI = tl.constexpr(c.SQRT_2_OVER_PI)
GELU_CUBIC = tl.constexpr(c.GELU_CUBIC)
SOFTPLUS_LINEAR = tl.constexpr(c.SOFTPLUS_LINEAR)

INF = tl.constexpr(float("inf"))
TWO_25 = tl.constexpr(2.0**25)
MIN_NORMAL = tl.constexpr(2.0**-126)
SIGN = tl.constexpr(-(2**31))
MAGNITUDE = tl.constexpr(2**31 - 1)


def lanes_of(size: int) -> int:
    """Return the lane count of a row of ``size`` elements (N2)."""
    return min(MAX_LANES, 1 << (size - 1).bit_length())


@triton.jit
def adjacent_sum(v, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Sum each row by the adjacent tree. [ROWS, LANES] -> [ROWS]"""
    # A sum of two has one order, so the layout cannot choose another.
    for level in tl.static_range(1, 11):
        if LANES >> level > 0:
            v = tl.sum(tl.reshape(v, (ROWS, LANES >> level, 2)), 2)
    return tl.reshape(v, (ROWS,))


@triton.jit
def horner(C: tl.constexpr, x):
    """Return the polynomial at x, highest power first, one fma a step."""
    p = tl.fma(x, C[0], C[1])
    for i in tl.static_range(2, len(C.value)):
        p = tl.fma(p, x, C[i])
    return p


@triton.jit
def copysign(magnitude, x):
    """Return the magnitude of one with the sign of the other."""
    bits = magnitude.to(tl.int32, bitcast=True) & MAGNITUDE
    return (bits | (x.to(tl.int32, bitcast=True) & SIGN)).to(tl.float32, bitcast=True)


@triton.jit
def exp32(x):
    """e^x."""
    z = tl.fma(x, LOG2E, ROUND_MAGIC)
    n = z - ROUND_MAGIC
    r = tl.fma(n, -LN2_HI, x)
    r = tl.fma(n, -LN2_LO, r)
    y = 1.0 + tl.fma(r * r, horner(EXP, r), r)
    # y * 2^n is never subnormal here, so it is an addition to y's exponent. n is in z's low bits
    # and the magic number's own leave by the top.
    exponent = z.to(tl.int32, bitcast=True) << 23
    y = (y.to(tl.int32, bitcast=True) + exponent).to(tl.float32, bitcast=True)
    y = tl.where(x < EXP_LOW, 0.0, y)
    return tl.where(x <= EXP_HIGH, y, x * INF)  # +Inf, or NaN for NaN


@triton.jit
def log32(x):
    """Natural logarithm."""
    subnormal = x < MIN_NORMAL
    bits = tl.where(subnormal, x * TWO_25, x).to(tl.int32, bitcast=True)
    k = (bits - SQRT_HALF_BITS) >> 23
    e = (k + tl.where(subnormal, -25, 0)).to(tl.float32)
    f = (bits - (k << 23)).to(tl.float32, bitcast=True) - 1.0
    t = f * f
    y = (horner(LOG, f) * f) * t
    y = tl.fma(e, LN2_LO, y)
    y = tl.fma(t, -0.5, y)
    y = tl.fma(e, LN2_HI, f + y)
    y = tl.where(x == 0, -INF, y)
    y = tl.where(x < INF, y, x)  # +Inf, NaN
    return tl.where(x < 0, float("nan"), y)


@triton.jit
def tanh32(x):
    """Hyperbolic tangent."""
    a = tl.abs(x)
    z = x * x
    small = tl.fma(z * horner(TANH, z), x, x)
    large = copysign(1.0 - tl.math.div_rn(2.0, exp32(a + a) + 1.0), x)
    return tl.where(a < TANH_SMALL, small, large)


@triton.jit
def erf32(x):
    """Error function."""
    a = tl.abs(x)
    z = x * x
    small = x * horner(ERF, z)
    t = tl.math.div_rn(1.0, tl.fma(a, 0.5, 1.0))
    large = tl.where(a >= ERF_ONE, 1.0, 1.0 - exp32(-z) * horner(ERFC, t))
    return tl.where(a < 1.0, small, copysign(large, x))


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return tl.math.div_rn(1.0, 1.0 + exp32(-x))


@triton.jit
def silu(x):
    """SiLU: x / (1 + e^-x)."""
    return tl.math.div_rn(x, 1.0 + exp32(-x))


@triton.jit
def softplus(x):
    """log(1 + e^x), and x itself where that is the same."""
    return tl.where(x > SOFTPLUS_LINEAR, x, log32(1.0 + exp32(x)))


@triton.jit
def gelu(x):
    """GELU by erf."""
    return (0.5 * x) * (1.0 + erf32(x * SQRT_HALF))


@triton.jit
def gelu_tanh(x):
    """GELU by its tanh approximation."""
    u = tl.fma((x * x) * x, GELU_CUBIC, x)
    return (0.5 * x) * (1.0 + tanh32(u * SQRT_2_OVER_PI))


NAMES = ("erf", "exp", "gelu", "gelu_tanh", "log", "sigmoid", "silu", "softplus", "tanh")


@triton.jit
def elementary(NAME: tl.constexpr, x):
    """Return the function of that name."""
    if NAME == "erf":
        return erf32(x)
    elif NAME == "exp":
        return exp32(x)
    elif NAME == "gelu":
        return gelu(x)
    elif NAME == "gelu_tanh":
        return gelu_tanh(x)
    elif NAME == "log":
        return log32(x)
    elif NAME == "sigmoid":
        return sigmoid(x)
    elif NAME == "silu":
        return silu(x)
    elif NAME == "softplus":
        return softplus(x)
    else:
        tl.static_assert(NAME == "tanh")
        return tanh32(x)


VARIANTS = ("scale_rounded", "round_scaled", "one_plus")


@triton.jit
def rms_scaled(x, r, w, VARIANT: tl.constexpr, DTYPE: tl.constexpr):
    """Return a row times its root ``r`` and weight, rounded where the variant rounds (rule 2)."""
    y = x * r
    if VARIANT == "unscaled":
        return y.to(DTYPE)
    elif VARIANT == "scale_rounded":
        return (y.to(DTYPE).to(tl.float32) * w).to(DTYPE)
    elif VARIANT == "round_scaled":
        return (y * w).to(DTYPE)
    else:
        tl.static_assert(VARIANT == "one_plus")
        return (y * (1.0 + w)).to(DTYPE)
