"""The gated products of an MLP, and every elementary function."""

from __future__ import annotations

from collections.abc import Iterator

from detinfer.compile_audit.cases import Case
from detinfer.kernels.triton.activation import (
    BLOCK,
    SMALL_BLOCK,
    WARPS,
    activation_kernel,
    gated_kernel,
)


def cases(arch: int) -> Iterator[Case]:
    """Yield an architecture's compilations."""
    yield _case("silu", "bf16", SMALL_BLOCK, gated=True)
    yield _case("silu", "bf16", BLOCK, gated=True)
    yield _case("gelu_tanh", "bf16", BLOCK, gated=True)
    if arch == 90:
        yield _case("silu", "fp16", BLOCK, gated=True)
        yield _case("silu", "fp32", BLOCK, gated=True)
        # Between them these hold every formula of rule 4.
        for name in ("gelu", "sigmoid", "softplus", "tanh"):
            yield _case(name, "bf16", BLOCK, gated=False)


def _case(name: str, dtype: str, block: int, gated: bool) -> Case:
    tensors = ("gate", "up", "out") if gated else ("x", "out")
    strides = ("gate_stride", "up_stride") if gated else ("x_stride",)
    signature = dict.fromkeys(tensors, f"*{dtype}") | dict.fromkeys(strides, "i32")
    signature |= {"width": "i32", "blocks": "i32"}
    return Case(
        name=f"{name}{'_mul' if gated else ''} {dtype} {block} w{WARPS}",
        kernel=gated_kernel if gated else activation_kernel,
        signature=signature,
        constants={"NAME": name, "BLOCK": block},
        warps=WARPS,
        dtype=dtype,
        aligned=frozenset(signature) - {"blocks"},
    )
