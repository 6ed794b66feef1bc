"""The contract's elementary functions (docs/arithmetic.md, rule 4) as LLVM vector code."""

from __future__ import annotations

from numba import types

from detinfer.kernels import constants as c
from detinfer.kernels.cpu.vector import Emit, row_intrinsic

INF = float("inf")


def exp(e: Emit, x):
    z = e.fma(x, e.const(c.LOG2E), e.const(c.ROUND_MAGIC))
    n = e.sub(z, e.const(c.ROUND_MAGIC))
    i = e.b.sub(e.bits(z), e.bits(e.const(c.ROUND_MAGIC)))
    r = e.fma(e.neg(n), e.const(c.LN2_HI), x)
    r = e.fma(e.neg(n), e.const(c.LN2_LO), r)
    t = e.mul(r, r)
    y = e.add(e.const(1.0), e.fma(t, e.horner(c.EXP, r), r))
    low = e.b.ashr(i, e.int32(1))
    for part in (low, e.b.sub(i, low)):
        y = e.mul(y, e.as_float(e.b.shl(e.b.add(part, e.int32(127)), e.int32(23))))
    y = e.select(e.less(x, e.const(c.EXP_LOW)), e.const(0.0), y)
    return e.select(e.less(e.const(c.EXP_HIGH), x), e.const(INF), y)


def log(e: Emit, x):
    subnormal = e.less(x, e.const(2.0**-126))
    scaled = e.select(subnormal, e.mul(x, e.const(2.0**25)), x)
    k = e.b.ashr(e.b.sub(e.bits(scaled), e.int32(c.SQRT_HALF_BITS)), e.int32(23))
    exponent = e.b.add(k, e.select(subnormal, e.int32(-25), e.int32(0)))
    exponent = e.b.sitofp(exponent, e.f32)
    f = e.sub(e.as_float(e.b.sub(e.bits(scaled), e.b.shl(k, e.int32(23)))), e.const(1.0))
    t = e.mul(f, f)
    y = e.mul(e.mul(e.horner(c.LOG, f), f), t)
    y = e.fma(exponent, e.const(c.LN2_LO), y)
    y = e.fma(e.const(-0.5), t, y)
    y = e.fma(exponent, e.const(c.LN2_HI), e.add(f, y))
    zero = e.const(0.0)
    y = e.select(e.b.fcmp_ordered("==", x, zero), e.const(-INF), y)
    y = e.select(e.less(x, zero), e.const(float("nan")), y)
    y = e.select(e.b.fcmp_ordered("==", x, e.const(INF)), x, y)
    return e.select(e.b.fcmp_unordered("uno", x, x), x, y)


def tanh(e: Emit, x):
    a, z = e.abs(x), e.mul(x, x)
    small = e.fma(e.mul(z, e.horner(c.TANH, z)), x, x)
    large = e.div(e.const(2.0), e.add(exp(e, e.add(a, a)), e.const(1.0)))
    large = e.copysign(e.sub(e.const(1.0), large), x)
    return e.select(e.less(a, e.const(c.TANH_SMALL)), small, large)


def erf(e: Emit, x):
    a, one = e.abs(x), e.const(1.0)
    small = e.mul(x, e.horner(c.ERF, e.mul(x, x)))
    t = e.div(one, e.fma(e.const(0.5), a, one))
    tail = e.mul(exp(e, e.neg(e.mul(a, a))), e.horner(c.ERFC, t))
    y = e.select(e.b.fcmp_ordered(">=", a, e.const(c.ERF_ONE)), one, e.sub(one, tail))
    return e.select(e.less(a, one), small, e.copysign(y, x))


def sigmoid(e: Emit, x):
    return e.div(e.const(1.0), e.add(e.const(1.0), exp(e, e.neg(x))))


def silu(e: Emit, x):
    return e.div(x, e.add(e.const(1.0), exp(e, e.neg(x))))


def softplus(e: Emit, x):
    y = log(e, e.add(e.const(1.0), exp(e, x)))
    return e.select(e.less(e.const(c.SOFTPLUS_LINEAR), x), x, y)


def gelu(e: Emit, x):
    y = e.add(e.const(1.0), erf(e, e.mul(x, e.const(c.SQRT_HALF))))
    return e.mul(e.mul(e.const(0.5), x), y)


def gelu_tanh(e: Emit, x):
    u = e.fma(e.mul(e.mul(x, x), x), e.const(c.GELU_CUBIC), x)
    y = e.add(e.const(1.0), tanh(e, e.mul(e.const(c.SQRT_2_OVER_PI), u)))
    return e.mul(e.mul(e.const(0.5), x), y)


FUNCTIONS = {f.__name__: f for f in (exp, log, tanh, erf, sigmoid, silu, softplus, gelu, gelu_tanh)}


def _scalar(function):
    return row_intrinsic(types.float32, [types.float32], lambda b, x: function(Emit(b, 1), x))


exp32, log32 = _scalar(exp), _scalar(log)
