"""Elementwise activations and gated products (docs/arithmetic.md, rule 4)."""

from __future__ import annotations

from numba import prange, types

from detinfer.kernels.cpu import elementary
from detinfer.kernels.cpu.jit import kernel, parallel_kernel
from detinfer.kernels.cpu.rounding import enter, leave
from detinfer.kernels.cpu.vector import ADDRESS, map_row, row_intrinsic

BLOCK = 4096  # elements a thread takes at a time

NAMES = tuple(elementary.FUNCTIONS)


def _map(function):
    def emit(b, x, out, n):
        map_row(b, n, lambda e, i: e.store(function(e, e.load(x, i)), out, i))

    return row_intrinsic(types.void, [ADDRESS] * 3, emit)


def _gate(function):
    def emit(b, gate, up, out, n):
        def body(e, i):
            e.store(e.mul(function(e, e.load(gate, i)), e.load(up, i)), out, i)

        map_row(b, n, body)

    return row_intrinsic(types.void, [ADDRESS] * 4, emit)


(_exp, _log, tanh_row, _erf, _sigmoid, _silu, _softplus, _gelu, _gelu_tanh) = (
    _map(f) for f in elementary.FUNCTIONS.values()
)
_silu_mul, _gelu_tanh_mul = _gate(elementary.silu), _gate(elementary.gelu_tanh)


@kernel
def activation_row(which, x, out, n):
    """``out[:n] = NAMES[which](x[:n])``; addresses of binary32 values."""
    if which == 0:
        _exp(x, out, n)
    elif which == 1:
        _log(x, out, n)
    elif which == 2:
        tanh_row(x, out, n)
    elif which == 3:
        _erf(x, out, n)
    elif which == 4:
        _sigmoid(x, out, n)
    elif which == 5:
        _silu(x, out, n)
    elif which == 6:
        _softplus(x, out, n)
    elif which == 7:
        _gelu(x, out, n)
    else:
        _gelu_tanh(x, out, n)


@kernel
def gate_row(gelu, gate, up, out, n):
    """``out = act(gate) * up``: silu, or gelu_tanh where ``gelu``."""
    if gelu:
        _gelu_tanh_mul(gate, up, out, n)
    else:
        _silu_mul(gate, up, out, n)


@parallel_kernel
def activation(which, x, out):
    """Elementwise over flat arrays."""
    n, x0, out0 = x.size, x.ctypes.data, out.ctypes.data
    for block in prange((n + BLOCK - 1) // BLOCK):
        before = enter()
        at = block * BLOCK
        activation_row(which, x0 + at * 4, out0 + at * 4, min(BLOCK, n - at))
        leave(before)


@parallel_kernel
def gate(gelu, gates, ups, out):
    """Elementwise gated product over flat arrays."""
    n, g0, u0, out0 = gates.size, gates.ctypes.data, ups.ctypes.data, out.ctypes.data
    for block in prange((n + BLOCK - 1) // BLOCK):
        before = enter()
        at = block * BLOCK
        gate_row(gelu, g0 + at * 4, u0 + at * 4, out0 + at * 4, min(BLOCK, n - at))
        leave(before)
