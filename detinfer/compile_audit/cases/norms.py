"""RMS and layer norm, at the widths of real models."""

from __future__ import annotations

from collections.abc import Iterator

from detinfer.compile_audit.cases import Case
from detinfer.kernels.triton.norms import (
    MANY_ROWS,
    configuration,
    layer_norm_kernel,
    rms_norm_kernel,
)
from detinfer.kernels.triton.numeric import lanes_of


def cases(arch: int) -> Iterator[Case]:
    """Yield an architecture's compilations."""
    few, many = 1, MANY_ROWS
    sizes = (576, 2048, 4096) if arch == 90 else (4096,)
    yield from (_rms_case("bf16", d, rows, add=True) for d in sizes for rows in (few, many))
    yield _rms_case("fp32", 576, many, add=True)
    yield _layer_case(2048, few)
    if arch == 90:
        yield _rms_case("bf16", 4096, few, add=False)
        yield _rms_case("fp16", 4096, few, add=True)
        yield _rms_case("bf16", 128, many, add=False, heads=True)
        yield _layer_case(2048, many)


def _rms_case(dtype: str, size: int, rows: int, add: bool, heads: bool = False) -> Case:
    block, warps = configuration(size, rows)
    pointer, absent = f"*{dtype}", {} if add else {"residual": None}
    signature = {"x": pointer, "weight": pointer, "residual": pointer, "out": pointer,
                 "rows": "i32", "inner": "i32", "x_outer": "i32", "x_inner": "i32",
                 "residual_stride": "i32", "eps": "fp32"}  # fmt: skip
    constants = {"D": size, "LANES": lanes_of(size), "ROWS": block, "VARIANT": "scale_rounded",
                 "ADD": add, **absent, **({} if heads else {"inner": 1, "x_inner": 1})}  # fmt: skip
    kind = "heads " if heads else "residual " if add else ""
    return Case(
        name=f"rms_norm {kind}{dtype} D{size} R{block} w{warps}",
        kernel=rms_norm_kernel,
        signature={name: kind for name, kind in signature.items() if name not in constants},
        constants=constants,
        warps=warps,
        dtype=dtype,
        aligned=frozenset(signature) - set(constants) - {"rows", "inner", "eps"},
    )


def _layer_case(size: int, rows: int) -> Case:
    block, warps = configuration(size, rows)
    signature = {"x": "*bf16", "weight": "*bf16", "bias": "*bf16", "out": "*bf16",
                 "rows": "i32", "x_outer": "i32", "eps": "fp32"}  # fmt: skip
    return Case(
        name=f"layer_norm bf16 D{size} R{block} w{warps}",
        kernel=layer_norm_kernel,
        signature=signature,
        constants={
            "D": size,
            "LANES": lanes_of(size),
            "ROWS": block,
            "WEIGHT": True,
            "BIAS": True,
            "inner": 1,
            "x_inner": 1,
        },
        warps=warps,
        aligned=frozenset(signature) - {"rows", "eps"},
    )
