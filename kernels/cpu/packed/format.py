"""GGUF blocks in the order in which the kernels read them.

A panel is 64 output columns. Of each, a *block* holds 32 k: scales of all columns, then their
integers, four k of one column in a 32-bit word, 64 columns side by side. Word g of a column has
k 4g … 4g + 3 in the low halves of its bytes and k 16 + 4g … in the high halves; further bits of an
integer follow in words of their own. Formats of 256 values have a *head* before each eight blocks,
with what those share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detinfer.kernels.constants import BLOCK_FORMATS

Bytes = npt.NDArray[Any]  # of uint8
PANEL = 64


@dataclass(frozen=True)
class Format:
    """How a format's panel lies in memory.

    Attributes:
        bits: of an integer u.
        z: what is taken from u.
        offset: whether there is an m.
        shared: whether scales are products of a block's own integers and its head's numbers.
        group: values with one scale.
    """

    bits: int
    z: int
    offset: bool
    shared: bool
    group: int

    @property
    def head(self) -> int:
        """Bytes before each eight blocks: binary16 numbers."""
        return PANEL * 2 * (1 + self.offset) if self.shared else 0

    @property
    def scales(self) -> int:
        """Bytes of a block before its integers: binary16 numbers, or integers of 8 bits."""
        if self.shared:
            return PANEL * (1 + self.offset) * (32 // self.group)
        return PANEL * 2 * (1 + self.offset)

    @property
    def block(self) -> int:
        """Bytes of a block."""
        return self.scales + PANEL * 4 * self.bits

    def panel(self, k: int) -> int:
        """Bytes of a panel."""
        return k // 32 * self.block + (k // 256 * self.head if self.shared else 0)


FORMATS = {
    "Q4_0": Format(4, 8, offset=False, shared=False, group=32),
    "Q4_1": Format(4, 0, offset=True, shared=False, group=32),
    "Q5_0": Format(5, 16, offset=False, shared=False, group=32),
    "Q5_1": Format(5, 0, offset=True, shared=False, group=32),
    "Q8_0": Format(8, 128, offset=False, shared=False, group=32),
    "Q4_K": Format(4, 0, offset=True, shared=True, group=32),
    "Q5_K": Format(5, 0, offset=True, shared=True, group=32),
    "Q6_K": Format(6, 32, offset=False, shared=True, group=16),
}


def to_panels(raw: Bytes, name: str, k: int) -> Bytes:
    """Reorder a tensor's rows. raw [n, bytes of a row] -> [ceil(n / 64), bytes of a panel]

    Panels begin at multiples of 64 bytes; columns past n have scales of zero.

    Raises:
        ValueError: a scale that is NaN or infinite.
    """
    size, n = FORMATS[name].panel(k), raw.shape[0]
    memory = np.empty(-(-n // PANEL) * size + PANEL, np.uint8)
    start = -memory.ctypes.data % PANEL
    out = memory[start : start + len(memory) - PANEL].reshape(-1, size)
    for panel, row in enumerate(range(0, n, PANEL)):
        part = raw[row : row + PANEL].reshape(min(PANEL, n - row), -1, BLOCK_FORMATS[name][1])
        _check_scales(part, name, row)
        if len(part) < PANEL:
            part = np.concatenate([part, np.zeros((PANEL - len(part), *part.shape[1:]), np.uint8)])
        out[panel] = _PACKERS[name](part).reshape(-1)
    return out


def _check_scales(raw: Bytes, name: str, row: int) -> None:
    """Refuse a binary16 number whose exponent is all ones. raw [rows, blocks, bytes]"""
    first = 208 if name == "Q6_K" else 0
    for at in range(first, first + 2 + 2 * FORMATS[name].offset, 2):
        bad = np.argwhere(raw[..., at + 1] & 0x7C == 0x7C)
        if len(bad):
            line, block = bad[0]
            value = np.ascontiguousarray(raw[line, block, at : at + 2]).view("<f2")[0]
            raise ValueError(
                f"raw: got a scale of {value} in {name} block {block} of row {row + line}, "
                "expected finite numbers"
            )


def _words(*fields: Bytes) -> Bytes:
    """Lay out fields of [64, blocks, bytes] by words of four bytes. -> [blocks, bytes]"""
    made = []
    for field in fields:
        item = "<u4" if field.shape[2] % 4 == 0 else "<u2" if field.shape[2] % 2 == 0 else "u1"
        words = np.ascontiguousarray(field).view(item).transpose(1, 2, 0)
        made.append(np.ascontiguousarray(words).view(np.uint8).reshape(field.shape[1], -1))
    return np.concatenate(made, axis=1)


def _fifth_bits(bits: Bytes) -> Bytes:
    """Bits of 32 values: value 4 o + j at bit o of byte j. [..., 32] -> [..., 4]"""
    split = bits.reshape(*bits.shape[:-1], 8, 4).swapaxes(-1, -2)
    packed: Bytes = np.packbits(split, axis=-1, bitorder="little")[..., 0]
    return packed


def _halves(low: Bytes, high: Bytes) -> Bytes:
    both: Bytes = low | high << 4
    return both


def _q4_0(raw: Bytes) -> Bytes:
    return _words(raw[..., :2], raw[..., 2:])


def _q4_1(raw: Bytes) -> Bytes:
    return _words(raw[..., :2], raw[..., 2:4], raw[..., 4:])


def _q5_0(raw: Bytes) -> Bytes:
    bits = np.unpackbits(raw[..., 2:6], axis=-1, bitorder="little")
    return _words(raw[..., :2], raw[..., 6:], _fifth_bits(bits))


def _q5_1(raw: Bytes) -> Bytes:
    bits = np.unpackbits(raw[..., 4:8], axis=-1, bitorder="little")
    return _words(raw[..., :2], raw[..., 2:4], raw[..., 8:], _fifth_bits(bits))


def _q8_0(raw: Bytes) -> Bytes:
    return _words(raw[..., :2], raw[..., 2:] ^ 0x80)


def _blocks(field: Bytes) -> Bytes:
    """[64, superblocks, 8, bytes] -> [64, blocks, bytes]"""
    return field.reshape(PANEL, -1, field.shape[-1])


def _with_heads(head: Bytes, blocks: Bytes) -> Bytes:
    return np.concatenate([head, blocks.reshape(head.shape[0], -1)], axis=1)


def _k_scales(raw: Bytes) -> tuple[Bytes, Bytes]:
    """Scales and offsets, 6 bits each, of eight blocks. [64, superblocks, 12] -> [64, blocks, 1]"""
    first, second, last = raw[..., :4], raw[..., 4:8], raw[..., 8:]
    scale = np.concatenate([first & 63, last & 15 | first >> 6 << 4], axis=-1)
    offset = np.concatenate([second & 63, last >> 4 | second >> 6 << 4], axis=-1)
    return scale.reshape(PANEL, -1, 1), offset.reshape(PANEL, -1, 1)


def _k_integers(raw: Bytes) -> Bytes:
    """32 bytes hold two blocks, one in the low halves and one in the high. -> [64, blocks, 16]"""
    pairs = raw.reshape(PANEL, -1, 4, 32)
    low, high = pairs & 15, pairs >> 4
    both = np.stack([low, high], axis=3)  # [64, superblocks, 4, 2, 32]
    return _blocks(_halves(both[..., :16], both[..., 16:]))


def _q4_k(raw: Bytes) -> Bytes:
    scale, offset = _k_scales(raw[..., 4:16])
    head = _words(raw[..., :2], raw[..., 2:4])
    return _with_heads(head, _words(scale, offset, _k_integers(raw[..., 16:])))


def _q5_k(raw: Bytes) -> Bytes:
    scale, offset = _k_scales(raw[..., 4:16])
    head = _words(raw[..., :2], raw[..., 2:4])
    bits = raw[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    fifth = _fifth_bits(_blocks(bits))
    return _with_heads(head, _words(scale, offset, _k_integers(raw[..., 48:]), fifth))


def _q6_k(raw: Bytes) -> Bytes:
    scale = raw[..., 192:208].reshape(PANEL, -1, 2)
    integers, high = _six_low(raw[..., :128]), _six_high(raw[..., 128:192])
    blocks = _words(scale[..., :1], scale[..., 1:], integers, high)
    return _with_heads(_words(raw[..., 208:]), blocks)


def _six_low(raw: Bytes) -> Bytes:
    """Low four bits of 256 integers, eight in a 64-bit word. -> [64, blocks, 16]"""
    low = np.uint64(0x0F0F0F0F0F0F0F0F)
    words = np.ascontiguousarray(raw).view(np.uint64).reshape(PANEL, -1, 2, 1, 2, 4)
    both = np.concatenate([words & low, words >> np.uint64(4) & low], axis=3)  # four blocks a half
    packed: Bytes = both[..., :2] | both[..., 2:] << np.uint64(4)
    return packed.view(np.uint8).reshape(PANEL, -1, 16)


def _six_high(raw: Bytes) -> Bytes:
    """High two bits of 256 integers: of operand o, value 4 o + j at bits 2 o, 2 o + 1 of byte j."""
    words = np.ascontiguousarray(raw).view(np.uint32).reshape(PANEL, -1, 2, 2, 4)
    made = np.zeros((*words.shape[:3], 4, 2), np.uint32)  # [64, superblocks, 2, 4 blocks, 2]
    for block in range(4):
        pairs = words >> np.uint32(2 * block) & np.uint32(0x03030303)
        for operand in range(4):
            made[..., block, :] |= pairs[..., operand] << np.uint32(2 * operand)
    return made.view(np.uint8).reshape(PANEL, -1, 8)


_PACKERS: dict[str, Callable[[Bytes], Bytes]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
