"""How kernels are launched: frozen configurations, and what a compiled one must show.

A configuration is free: every one that can serve a weight gives the same bits
(docs/arithmetic.md, "Profile native"). It may follow the row count, never the clock.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

ARCHITECTURES = (80, 86, 89, 90, 100)

# Bytes of shared memory one program may have.
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}

# Options every kernel is compiled with: nothing is contracted that the source does not contract.
OPTIONS: Mapping[str, Any] = {"enable_fp_fusion": False}

TRITON_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Case:
    """One compilation of a kernel for the audit, and what its machine code must show.

    Attributes:
        name: op and configuration, unique for an architecture.
        kernel: the ``triton.jit`` function.
        signature: type of every argument that is not a constexpr: ``"*bf16"``, ``"i32"``,
            ``"tensordesc<bf16[64, 128]>"``.
        constants: value of every constexpr.
        warps: as launched.
        stages: as launched.
        dtype: ``"bf16"``, ``"fp16"`` or ``"fp32"``.
        mma: the instruction family of its dots: ``wgmma``, ``mma.sync``, ``tcgen05``, ``fma``
            or ``none``.
        tma: whether it must load by TMA.
        buffers: bytes that the pipelined loads' buffers take together at least.
        k_steps: k16 steps (products, for fma) that one pass of the k loop chains on each
            accumulator, where the kernel has such a loop.
        weight: cases that can serve the same weight share this name.
        aligned: arguments the launcher specialises as divisible by 16.
        options: launch options beside ``OPTIONS``.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    dtype: str = "bf16"
    mma: str = "none"
    tma: bool = False
    buffers: int = 0
    k_steps: int | None = None
    weight: str | None = None
    aligned: frozenset[str] = field(default_factory=frozenset)
    options: Mapping[str, Any] = field(default_factory=dict)


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability as one number: 90 on Hopper. The interpreter stands in for one.

    Raises:
        ValueError: an architecture no table is written for.
    """
    if interpreted():
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    known = [arch for arch in ARCHITECTURES if arch // 10 == major and arch % 10 <= minor]
    if not known:
        raise ValueError(
            f"device: got compute capability {major}.{minor}, expected one of "
            f"{', '.join(f'{a // 10}.{a % 10}' for a in ARCHITECTURES)}"
        )
    return known[-1]


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return how many programs of a persistent kernel run side by side, one each."""
    if interpreted():
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
