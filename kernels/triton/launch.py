"""How kernels are launched: on what, and with which options.

A configuration is free: every one that can serve a weight gives the same bits
(docs/arithmetic.md, "Profile native"). It may follow the row count, never the clock.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import torch

ARCHITECTURES = (80, 86, 89, 90, 100)

# Bytes of shared memory one program may have.
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}

# Options every kernel is compiled with: nothing is contracted that the source does not contract.
OPTIONS: Mapping[str, Any] = {"enable_fp_fusion": False}

# From Hopper on a kernel may be started while the one before it ends (overlap.py).
OVERLAP_FROM = 90

TRITON_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


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


@functools.cache
def options(device: torch.device, early: bool = True) -> Mapping[str, Any]:
    """Return what a launch is given beside its kernel's own constants.

    Args:
        device: that it is on.
        early: whether the kernel may start while the one before it ends (overlap.py).
    """
    return options_for(0 if interpreted() else architecture(device), early)


def options_for(arch: int, early: bool) -> Mapping[str, Any]:
    """Return the same for an architecture, 0 for none of NVIDIA's."""
    overlap = arch >= OVERLAP_FROM
    return {**OPTIONS, "OVERLAP": overlap, **({"launch_pdl": True} if overlap and early else {})}
