"""What the audit compiles: one file an op, whose ``cases(arch)`` yields each compilation once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OPS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))


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
        options: launch options beside those of ``launch.options_for``.
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
