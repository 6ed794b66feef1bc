"""How paged attention is launched: by architecture, dtype and head dimensions, frozen."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from detinfer.kernels.triton.attention_work import Tiling, padded_group

# Decode tiles of 16 rows use mma.sync, also where prefill uses wgmma or tcgen05. Where a device
# shows that those differ in bits, False gives decode prefill's instructions.
MIX_FAMILIES = True

MERGE_HEADS = 4  # of a program that merges
MERGE_PROGRAMS = 16  # of them on a multiprocessor


def padded(dim: int) -> int:
    """Return a head dimension as the tensor core takes it."""
    return max(16, 1 << (dim - 1).bit_length())


@dataclass(frozen=True)
class AttentionConfig:
    """How one kind of item is launched; free (see launch.py).

    Attributes:
        block_m: rows of a tile, or the padded group where that is more.
        warps: of a program.
        stages: blocks of keys and values in flight or in use.
        programs: on a multiprocessor; the grid is that many times their number.
    """

    block_m: int
    warps: int
    stages: int
    programs: int


@dataclass(frozen=True)
class AttentionConfigs:
    """What serves the layers of one shape.

    Attributes:
        prefill: items of long chunks.
        decode: items of short ones.
        whole: whether a long chunk's tile keeps its total in registers.
        prefill_from: rows that make a chunk long.
    """

    prefill: AttentionConfig
    decode: AttentionConfig
    whole: bool
    prefill_from: int = 32

    def tiling(self, group: int) -> Tiling:
        """Return how the host cuts batches for it."""
        least = padded_group(group)
        return Tiling(
            prefill_rows=max(self.prefill.block_m, least),
            decode_rows=max(self.decode.block_m, least),
            prefill_from=self.prefill_from,
            whole=self.whole,
        )


_C = AttentionConfig

# By architecture, then the larger head dimension, padded: a long chunk's tile, whether it keeps its
# total, a short one's tile. Chosen by compiling: no case of the audit spills; no speed has been
# measured. On Hopper 128 rows load half as much from L2 as 64 would (4 warps, 3 stages,
# 2 programs: no spills either).
_ADA = {
    64: (_C(64, 4, 2, 2), True, _C(16, 4, 3, 2)),
    128: (_C(64, 8, 2, 1), True, _C(16, 4, 2, 2)),
    256: (_C(16, 4, 2, 1), False, _C(16, 4, 2, 1)),
}
_HALF = {
    80: {
        64: (_C(64, 4, 2, 2), True, _C(16, 4, 3, 4)),
        128: (_C(64, 8, 2, 1), True, _C(16, 4, 3, 2)),
        256: (_C(64, 8, 2, 1), False, _C(16, 4, 2, 2)),
    },
    86: _ADA,
    89: _ADA,
    90: {
        64: (_C(128, 8, 3, 1), True, _C(16, 4, 4, 4)),
        128: (_C(128, 8, 3, 1), True, _C(64, 4, 3, 2)),
        256: (_C(64, 8, 2, 1), False, _C(16, 4, 2, 3)),
    },
    100: {
        64: (_C(128, 8, 2, 1), True, _C(16, 4, 4, 4)),
        128: (_C(64, 8, 3, 1), True, _C(16, 4, 3, 3)),
        256: (_C(16, 4, 2, 2), False, _C(16, 4, 2, 2)),
    },
}
_FLOAT = {
    64: (_C(32, 4, 2, 1), True, _C(16, 4, 2, 2)),
    128: (_C(16, 4, 2, 1), True, _C(16, 4, 2, 1)),
    256: (_C(16, 4, 1, 1), False, _C(16, 4, 1, 1)),  # too much shared memory for 86 and 89
}
_WGMMA_DECODE = _C(64, 4, 3, 2)


@functools.cache
def configs(
    arch: int, dtype: torch.dtype, k_dim: int, v_dim: int, mix: bool = MIX_FAMILIES
) -> AttentionConfigs:
    """Return the launch table: by architecture, dtype and head dimensions only.

    Raises:
        ValueError: head dimensions without a kernel.
    """
    is_float = dtype == torch.float32
    largest = 128 if is_float and arch in (86, 89) else 256
    if max(k_dim, v_dim) > largest:
        raise ValueError(
            f"k_dim, v_dim: got {k_dim}, {v_dim}, expected at most {largest} "
            f"for {dtype} on sm_{arch}"
        )
    width = max(64, padded(k_dim), padded(v_dim))
    prefill, whole, decode = (_FLOAT if is_float else _HALF[arch])[width]
    if not mix and not is_float and arch >= 90:
        decode = _WGMMA_DECODE if arch == 90 and width <= 128 else prefill
    return AttentionConfigs(prefill, decode, whole)
