"""Rule 1q in plain NumPy: linear and embedding over weights that stay in a GGUF file's blocks.

Written from docs/arithmetic.md and the formats' published layouts, and from nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detinfer.kernels import constants as c
from detinfer.kernels.reference import F32, Array, fma, segments

Bytes = npt.NDArray[Any]  # of uint8
Integers = npt.NDArray[np.int64]
_ieee = np.errstate(all="ignore")


@dataclass(frozen=True)
class Blocks:
    """A weight [n, k] as blocks of G values along k, each ``d * (u - z) + m``.

    Attributes:
        u: unsigned integers of at most 8 bits. [n, k / G, G]
        z: the format's constant.
        d: scales. [n, k / G]
        m: offsets, or None for a format without. [n, k / G]
    """

    u: Integers
    z: int
    d: Array
    m: Array | None


def unpack(raw: Bytes, name: str) -> Blocks:
    """Read rows of a GGUF tensor. raw [n, bytes of a row]"""
    n = raw.shape[0]
    _, size = c.BLOCK_FORMATS[name]
    u, z, d, m = _READERS[name](raw.reshape(-1, size))
    group = u.shape[-1]
    return Blocks(
        u.reshape(n, -1, group).astype(np.int64),
        z,
        d.astype(F32).reshape(n, -1),
        None if m is None else m.astype(F32).reshape(n, -1),
    )


_Fields = tuple[Bytes, int, Array, Array | None]


def _half(raw: Bytes) -> Array:
    """Two bytes, little-endian, as a binary16 number. [blocks, 2] -> [blocks, 1]"""
    return np.ascontiguousarray(raw).view("<f2").astype(F32)


def _nibbles(raw: Bytes) -> Bytes:
    """Low halves of all bytes, then high halves. [..., b] -> [..., 2 b]"""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _fifth_bits(raw: Bytes) -> Bytes:
    """Bit i of four bytes as bit 4 of value i. [blocks, 4] -> [blocks, 32]"""
    return np.unpackbits(raw, axis=-1, bitorder="little") << 4


def _q4_0(raw: Bytes) -> _Fields:
    return _nibbles(raw[:, 2:]), 8, _half(raw[:, :2]), None


def _q4_1(raw: Bytes) -> _Fields:
    return _nibbles(raw[:, 4:]), 0, _half(raw[:, :2]), _half(raw[:, 2:4])


def _q5_0(raw: Bytes) -> _Fields:
    return _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6]), 16, _half(raw[:, :2]), None


def _q5_1(raw: Bytes) -> _Fields:
    u = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
    return u, 0, _half(raw[:, :2]), _half(raw[:, 2:4])


def _q8_0(raw: Bytes) -> _Fields:
    return raw[:, 2:] ^ 0x80, 128, _half(raw[:, :2]), None


def _k_scales(raw: Bytes) -> tuple[Array, Array]:
    """Eight scales and eight offsets of 6 bits each, from 16 bytes. -> [blocks, 8] each"""
    first, second, last = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    sc = np.concatenate([first & 63, last & 15 | first >> 6 << 4], axis=-1)
    mn = np.concatenate([second & 63, last >> 4 | second >> 6 << 4], axis=-1)
    return _half(raw[:, :2]) * sc, -(_half(raw[:, 2:4]) * mn)


def _q4_k(raw: Bytes) -> _Fields:
    # 32 bytes hold two blocks: their low halves are one, their high halves the next.
    u = _nibbles(raw[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return (u, 0, *_k_scales(raw))


def _q5_k(raw: Bytes) -> _Fields:
    low = _nibbles(raw[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    high = raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return (low | high << 4, 0, *_k_scales(raw))


def _q6_k(raw: Bytes) -> _Fields:
    # Each half of the 256: 64 bytes of low halves, 32 bytes of four pairs of high bits.
    low = _nibbles(raw[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    sc = raw[:, 192:208].view(np.int8)
    return (low | high << 4).reshape(-1, 16, 16), 32, _half(raw[:, 208:]) * sc, None


_READERS: dict[str, Callable[[Bytes], _Fields]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


@_ieee
def quantise(x: Array) -> tuple[Integers, Array]:
    """Quantise rows by groups of 32. x [M, K] -> q [M, K / 32, 32], dx [M, K / 32]"""
    groups = x.reshape(x.shape[0], -1, c.GROUP)
    a = np.abs(groups).max(-1)  # NaN where any is
    finite, zero = np.isfinite(a), a < F32(c.ZERO_BELOW)
    scaled = groups * (F32(127) / a)[..., None]
    q = np.where((finite & ~zero)[..., None], np.rint(scaled), 0).astype(np.int64)
    dx = np.where(zero, F32(0), np.where(finite, a / F32(127), F32(np.nan)))
    return q, dx.astype(F32)


@_ieee
def linear(x: Array, weight: Blocks, bias: Array | None = None) -> Array:
    """``x @ weight.T + bias``. x [M, K], bias [N] -> [M, N]"""
    q, dx = quantise(x)
    n, blocks, size = weight.u.shape
    q = q.reshape(len(x), blocks, size)
    dx = np.repeat(dx, c.GROUP // size, axis=1)
    sums = q.sum(-1)
    s = segments(blocks * size)
    parts = np.zeros((s, len(x), n), F32)
    for b in range(blocks):
        acc = parts[b * s // blocks]
        integer = q[:, b] @ weight.u[:, b].T - weight.z * sums[:, b, None]
        acc[...] = fma(integer.astype(F32), dx[:, b, None] * weight.d[:, b], acc)
        if weight.m is not None:
            acc[...] = fma(weight.m[:, b], (dx[:, b] * sums[:, b].astype(F32))[:, None], acc)
    while len(parts) > 1:
        parts = parts[0::2] + parts[1::2]
    y: Array = parts[0]
    return y if bias is None else y + bias


def rows(weight: Blocks, ids: Integers | slice = slice(None)) -> Array:
    """Rows of a weight as binary32 numbers, one rounding each. -> [ids, k]"""
    centred, d = (weight.u[ids] - weight.z).astype(F32), weight.d[ids, :, None]
    if weight.m is None:
        values = d * centred
    else:
        values = fma(d, centred, np.broadcast_to(weight.m[ids, :, None], centred.shape))
    return values.reshape(len(centred), -1)
