"""Which launch configuration serves a weight: frozen tables, one an architecture and dtype.

Every row of every table gives the same bits (rule N1 of docs/arithmetic.md), so a row is chosen
for speed alone, by the weight's shape and the bucket the row count falls in. Where few rows are
multiplied the weight is read once and nothing else costs, so tiles are cut to keep all programs
resident in one wave and some 64 KB of weights in flight on every multiprocessor.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch

# A linear's K is padded with zeros to a multiple of this; every BLOCK_K divides it.
K_PAD = 128

# On Hopper the fewest rows run on mma.sync, the others on wgmma. Published bit models say that
# the two agree; where a device test says otherwise, False keeps every row on wgmma.
MIX_FAMILIES = True

# What a row's first element is a multiple of, in elements, and an address in bytes. Triton loads
# wide only where it knows so, and a TMA descriptor needs 16 bytes.
ALIGNMENT = 16

# Classes of N. On Hopper's 132 multiprocessors: one tile of 64 columns each (o, down, qkv); two
# (gate or up alone); four of the smallest (gate_up); more (the head).
_ONE, _TWO, _FOUR = 8192, 264 * 64, 528 * 64
_TINY = 1536  # N up to which tiles of 256 columns leave much of the last one empty


@dataclass(frozen=True)
class LinearConfig:
    """How one linear is launched.

    Attributes:
        block_m: tokens of a tile.
        block_n: weight rows (output features) of a tile.
        block_k: depth of one pass of the k loop; divides 128.
        warps: warps of a program.
        stages: buffers of the pipelined loads.
        swap: the weights take the MMA's M side, so that 16 tokens fill its N side.
        tma: load through host descriptors.
        persistent: one program a multiprocessor walks over many tiles; needs ``tma``.

    Raises:
        ValueError: a block that no kernel can run.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    swap: bool = False
    tma: bool = False
    persistent: bool = False

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "block_k"):
            size = getattr(self, name)
            if size < 16 or size & (size - 1):
                raise ValueError(f"{name}: got {size}, expected a power of two from 16")
        if K_PAD % self.block_k:
            raise ValueError(f"block_k: got {self.block_k}, expected a divisor of {K_PAD}")
        if self.persistent and not self.tma:
            raise ValueError("persistent: got True without tma, expected both")

    @property
    def grouped(self) -> bool:
        """Whether tiles are numbered in groups for L2: where there can be many rows of them."""
        return self.persistent or self.block_m >= 128


Rows = tuple[tuple[int, LinearConfig], ...]

OPEN_END = 1 << 62  # most rows that the last row of a table serves


def _normal(m: int, n: int, k: int, warps: int, stages: int) -> LinearConfig:
    return LinearConfig(m, n, k, warps, stages, tma=True)


def _swapped(n: int, m: int, k: int, stages: int) -> LinearConfig:
    return LinearConfig(m, n, k, 4, stages, swap=True, tma=True)


def _rows(*rows: tuple[int, LinearConfig]) -> Rows:
    """Return a table without rows that only repeat the next one's configuration."""
    kept = [row for row, after in itertools.pairwise(rows) if row[1] != after[1]]
    return (*kept, rows[-1])


def _large_is_square(n: int) -> bool:
    """Tell whether tiles of 256 columns would be mostly empty, or stored by element (spills)."""
    return n <= _TINY or n % ALIGNMENT != 0


_PERSISTENT = LinearConfig(128, 256, 64, 8, 3, tma=True, persistent=True)


def _hopper(n: int, mix: bool) -> Rows:
    """Hopper: HBM bounds the first rows, then L2, which reads x again for every column tile.

    So column tiles widen with M, and the shared memory left goes to stages until the weights in
    flight cover HBM's latency.
    """
    square = _normal(128, 128, 64, 8, 4)
    large = square if _large_is_square(n) else _PERSISTENT
    if n <= _ONE:
        return _rows(
            # Columns in 32s for o and down: in 64s half of the multiprocessors would have none.
            (16, _normal(16, 32, 128, 4, 10) if mix else _swapped(64, 16, 128, 8)),
            (32, _swapped(64, 32, 128, 6)),
            (64, _swapped(64, 64, 64, 10)),
            (128, _swapped(64, 128, 64, 6)),
            (1023, square),
            (OPEN_END, large),
        )
    if n <= _TWO:
        up_to_16 = _swapped(64, 16, 128, 5)
    elif n <= _FOUR:
        up_to_16 = _swapped(64, 16, 64, 5)
    else:
        up_to_16 = _swapped(128, 16, 64, 4)
    return _rows(
        (16, up_to_16),
        (32, _swapped(128, 32, 64, 5)),
        (64, _swapped(128, 64, 64, 4)),
        (256, square if n <= _TWO else large),
        (OPEN_END, large),
    )


def _blackwell(n: int) -> Rows:
    """Blackwell: tensor memory holds the accumulators; their M side is never under 64."""
    square = _normal(128, 128, 64, 8, 4)
    large = square if _large_is_square(n) else _normal(128, 256, 64, 8, 3)
    head = n > _FOUR
    return _rows(
        (16, _swapped(128, 16, 128, 4) if head else _swapped(64, 16, 128, 5)),
        (32, _swapped(128, 32, 128, 4) if head else _swapped(64, 32, 128, 4)),
        (64, _swapped(64, 64, 64, 6)),
        (256, _swapped(64, 128, 64, 4)),
        (1023, square),
        (OPEN_END, large),
    )


def _ampere(n: int) -> Rows:
    """Ampere and Ada: pointers, within the 99 KB of the smallest."""
    if n <= _ONE:
        return _rows(
            (16, LinearConfig(16, 32, 128, 4, 5)),
            (32, LinearConfig(32, 64, 64, 4, 5)),
            (256, LinearConfig(64, 64, 64, 4, 4)),
            (OPEN_END, LinearConfig(128, 128, 32, 8, 4)),
        )
    return _rows(
        (16, LinearConfig(16, 64, 128, 4, 4)),
        (32, LinearConfig(32, 64, 64, 4, 5)),
        (64, LinearConfig(64, 64, 64, 4, 4)),
        (256, LinearConfig(64, 128, 64, 4, 3)),
        (OPEN_END, LinearConfig(128, 128, 64, 8, 3)),
    )


# Rows of an odd length or address load element by element: small tiles, one family.
_UNALIGNED: Rows = (
    (16, LinearConfig(16, 64, 32, 4, 2, swap=True)),
    (OPEN_END, LinearConfig(64, 64, 32, 4, 2)),
)

# Plain fused multiply-adds: a block's whole depth lies in registers, so it is short.
_FLOAT32: Rows = (
    (16, LinearConfig(16, 64, 32, 4, 3)),
    (OPEN_END, LinearConfig(64, 64, 16, 4, 3)),
)


@functools.cache
def table(
    arch: int,
    dtype: torch.dtype,
    n: int,
    k: int,
    aligned: bool = True,
    mix: bool = MIX_FAMILIES,
) -> Rows:
    """Return the launch table of a weight: (most rows served, configuration), ascending.

    Args:
        arch: compute capability as one number.
        dtype: of weight and activations.
        n: output features.
        k: input features.
        aligned: whether ``ALIGNMENT`` holds for the addresses of weight and activations and for
            the activations' rows.
        mix: whether one table may use two MMA families (``MIX_FAMILIES``).
    """
    if dtype == torch.float32:
        return _FLOAT32
    if not aligned or k % ALIGNMENT:
        return _UNALIGNED
    if arch < 90:
        return _ampere(n)
    return _hopper(n, mix) if arch < 100 else _blackwell(n)


def select(
    arch: int, dtype: torch.dtype, n: int, k: int, m: int, aligned: bool = True
) -> LinearConfig:
    """Return the configuration for ``m`` rows; arguments as for ``table``."""
    for most, config in table(arch, dtype, n, k, aligned):
        if m <= most:
            return config
    raise ValueError(f"m: got {m}, expected at most {OPEN_END}")


def configs(
    arch: int, dtype: torch.dtype, n: int, k: int, mix: bool = MIX_FAMILIES
) -> tuple[LinearConfig, ...]:
    """Every configuration that can serve a weight, by any row count or alignment, once."""
    rows = table(arch, dtype, n, k, True, mix) + table(arch, dtype, n, k, False, mix)
    return tuple(dict.fromkeys(config for _, config in rows))
