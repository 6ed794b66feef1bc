"""Rows of an embedding table, at the widths of real models."""

from __future__ import annotations

from collections.abc import Iterator

import triton

from detinfer.compile_audit.cases import Case
from detinfer.kernels.triton.embedding import BLOCK, WARPS, embedding_kernel


def cases(arch: int) -> Iterator[Case]:
    """Yield an architecture's compilations."""
    for size in (576, 4096) if arch == 90 else (4096,):
        yield Case(
            name=f"embedding bf16 D{size}",
            kernel=embedding_kernel,
            signature={
                "ids": "*i64",
                "table": "*bf16",
                "out": "*bf16",
                "table_rows": "i32",
                "table_stride": "i32",
            },
            constants={"D": size, "BLOCK": min(BLOCK, triton.next_power_of_2(size))},
            warps=WARPS,
            aligned=frozenset({"ids", "table", "out", "table_stride"}),
        )
