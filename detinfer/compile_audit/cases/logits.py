"""What is read off logits, at the vocabularies of real models."""

from __future__ import annotations

from collections.abc import Iterator

import triton

from detinfer.compile_audit.cases import Case
from detinfer.kernels.triton.logits import (
    SLICE,
    combine_kernel,
    configuration,
    softmax_kernel,
    summarise_kernel,
)
from detinfer.kernels.triton.numeric import lanes_of


def cases(arch: int) -> Iterator[Case]:
    """Yield an architecture's compilations."""
    signature = {"x": "*fp32", "partial": "*i64", "V": "i32", "stride": "i32", "slices": "i32"}
    yield Case(
        name="summarise",
        kernel=summarise_kernel,
        signature=signature,
        constants={"SLICE": SLICE},
        dtype="fp32",
        aligned=frozenset(signature) - {"slices"},
    )
    for size in (49152, 128256, 151936) if arch == 90 else (151936,):
        slices = triton.next_power_of_2(triton.cdiv(size, SLICE))
        yield Case(
            name=f"combine {slices}",
            kernel=combine_kernel,
            signature={"partial": "*i64", "out": "*i64", "slices": "i32"},
            constants={"SLICES": slices},
            warps=1,
            dtype="fp32",
            aligned=frozenset({"partial", "out"}),
        )
    yield _softmax_case("fp32", 151936, rows=1, log=True)
    if arch == 90:
        yield _softmax_case("fp32", 151936, rows=1, log=False)
        yield _softmax_case("bf16", 128, rows=64, log=False)


def _softmax_case(dtype: str, size: int, rows: int, log: bool) -> Case:
    block, warps = configuration(size, rows)
    signature = {"x": f"*{dtype}", "out": "*fp32", "rows": "i32", "x_outer": "i32"}
    return Case(
        name=f"{'log_' if log else ''}softmax {dtype} V{size} R{block} w{warps}",
        kernel=softmax_kernel,
        signature=signature,
        constants={
            "V": size,
            "LANES": lanes_of(size),
            "ROWS": block,
            "LOG": log,
            "inner": 1,
            "x_inner": 1,
        },
        warps=warps,
        dtype=dtype,
        aligned=frozenset(signature) - {"rows"},
    )
