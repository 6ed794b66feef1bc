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

# What a row's first element is a multiple of, in elements, and an address in bytes. Triton loads
# wide only where it knows so, and a TMA descriptor needs 16 bytes.
ALIGNMENT = 16

_PROGRAMS = 132  # Hopper's multiprocessors: of an H100 or H200; others differ in speed alone

# Classes of N: up to one tile of 64 columns for each (o, down, qkv); two (gate or up alone);
# three; four of the smallest (gate_up); more (the head).
_ONE, _TWO, _THREE, _FOUR = (count * _PROGRAMS * 64 for count in (1, 2, 3, 4))
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


# Tiles for more than 64 rows, and how long one of them takes beside the others: measured on an
# H200, where K = 4096 takes so many microseconds.
_TILES = (
    (_swapped(64, 64, 128, 6), 13.9),
    (_swapped(64, 128, 64, 8), 18.0),
    (LinearConfig(128, 128, 64, 8, 4, tma=True, persistent=True), 27.0),
    (LinearConfig(128, 256, 64, 8, 3, tma=True, persistent=True), 45.4),
)
_SQUARE_FEW = _swapped(128, 128, 64, 6)  # the square where all its tiles run at once or nearly
_FINE = 4096  # rows up to which the number of waves decides; from there on all are many


def _hopper(n: int) -> Rows:
    """Hopper: few rows read a weight at the speed of memory, many are bound by the tensor cores.

    Few rows: as many stages as shared memory holds, to cover the latency of HBM, but for wide
    weights, whose programs share a multiprocessor. Many: the tile whose waves take least.
    """
    if n <= _ONE:
        few = (
            (16, _swapped(64, 16, 128, 8)),
            (32, _swapped(64, 32, 128, 8)),
            (64, _swapped(64, 64, 128, 6)),
            (128, _tile(n, 128)),
        )
    else:
        columns = 64 if n <= _FOUR else 128
        stages = 3 if _TWO < n <= _THREE else 4  # three programs a multiprocessor, or two
        few = (
            (16, _swapped(columns, 16, 128, stages)),
            (32, _swapped(columns, 32, 128, stages)),
            (64, _swapped(128, 64, 128, 4)),
            (128, _SQUARE_FEW),
        )
    many = ((m, _tile(n, m)) for m in range(256, _FINE + 1, 128))
    return _rows(*few, *many, (OPEN_END, _tile(n, 1 << 20)))


def _tile(n: int, m: int) -> LinearConfig:
    """Return the tile of least time for m rows."""
    tiles = _TILES[:-1] if _large_is_square(n) else _TILES

    def time(tile: tuple[LinearConfig, float]) -> float:
        config, seconds = tile
        return _ceil(_ceil(m, config.block_m) * _ceil(n, config.block_n), _PROGRAMS) * seconds

    best = min(tiles, key=time)[0]
    return _SQUARE_FEW if m <= 256 and best.block_n == best.block_m == 128 else best


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


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
) -> Rows:
    """Return the launch table of a weight: (most rows served, configuration), ascending.

    Args:
        arch: compute capability as one number.
        dtype: of weight and activations.
        n: output features.
        k: input features.
        aligned: whether ``ALIGNMENT`` holds for the addresses of weight and activations and for
            the activations' rows.
    """
    if dtype == torch.float32:
        return _FLOAT32
    if not aligned or k % ALIGNMENT:
        return _UNALIGNED
    if arch < 90:
        return _ampere(n)
    return _hopper(n) if arch < 100 else _blackwell(n)


def select(
    arch: int, dtype: torch.dtype, n: int, k: int, m: int, aligned: bool = True
) -> LinearConfig:
    """Return the configuration for ``m`` rows; arguments as for ``table``."""
    for most, config in table(arch, dtype, n, k, aligned):
        if m <= most:
            return config
    raise ValueError(f"m: got {m}, expected at most {OPEN_END}")


def configs(arch: int, dtype: torch.dtype, n: int, k: int) -> tuple[LinearConfig, ...]:
    """Every configuration that can serve a weight, by any row count or alignment, once."""
    rows = table(arch, dtype, n, k, True) + table(arch, dtype, n, k, False)
    return tuple(dict.fromkeys(config for _, config in rows))
