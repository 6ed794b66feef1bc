"""What the tables of ``linear`` choose for real models' weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from detinfer.compile_audit.cases import Case
from detinfer.kernels.triton import launch
from detinfer.kernels.triton.matmul_kernels import linear_pointers, linear_tma
from detinfer.kernels.triton.matmul_table import K_PAD, LinearConfig, table

# (n, k) of every linear of SmolLM2-135M, Qwen3-1.7B, Qwen3-8B and Llama-3.1-8B: qkv, o, gate_up,
# gate alone, down; and the heads, whose results stay binary32.
_LAYERS = (
    *((960, 576), (576, 576), (3072, 576), (1536, 576), (576, 1536)),
    *((4096, 2048), (2048, 2048), (12288, 2048), (6144, 2048), (2048, 6144)),
    *((6144, 4096), (4096, 4096), (24576, 4096), (12288, 4096), (4096, 12288)),
    *((28672, 4096), (14336, 4096), (4096, 14336)),
)
_HEADS = ((49152, 576), (151936, 2048), (151936, 4096), (128256, 4096))
_REPRESENTATIVE = (4096, 4096)
_FLAGS = ("SWAP", "PERSISTENT", "EVEN_N", "EVEN_K")


def cases(arch: int) -> Iterator[Case]:
    """Yield what an architecture's tables choose for models' linears, each compilation once."""
    wanted = [(torch.bfloat16, shape, False, torch.bfloat16, True) for shape in _LAYERS]
    wanted += [(torch.bfloat16, shape, False, torch.float32, True) for shape in _HEADS]
    wanted += [(torch.bfloat16, (6144, 4096), True, torch.bfloat16, True)]
    wanted += [(torch.float16, _REPRESENTATIVE, False, torch.float16, True)]
    wanted += [(torch.float32, (4096, 576), True, torch.float32, True)]
    wanted += [(torch.bfloat16, (4095, 4095), True, torch.bfloat16, False)]
    seen = set()
    for dtype, (n, k), bias, out_dtype, aligned in wanted:
        for config in dict.fromkeys(config for _, config in table(arch, dtype, n, k, aligned)):
            case = _case(arch, config, dtype, n, k, bias, out_dtype, aligned)
            if case.name not in seen:
                seen.add(case.name)
                yield case


def _case(
    arch: int,
    config: LinearConfig,
    dtype: torch.dtype,
    n: int,
    k: int,
    bias: bool,
    out_dtype: torch.dtype,
    aligned: bool,
) -> Case:
    kind, out_kind = launch.TRITON_DTYPES[dtype], launch.TRITON_DTYPES[out_dtype]
    m, block_k = config.block_m, config.block_k
    constants: dict[str, Any] = {
        "BLOCK_M": m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": block_k,
        "SWAP": config.swap,
        "GROUPED": config.grouped,
    }
    signature = {"bias": f"*{kind}", "y": f"*{out_kind}", "m": "i32", "n": "i32", "k": "i32"}
    if not bias:
        del signature["bias"]
        constants["bias"] = None
    if config.tma:
        kernel: Any = linear_tma
        signature["x"] = f"tensordesc<{kind}[{m}, {block_k}]>"
        signature["w"] = f"tensordesc<{kind}[{config.block_n}, {block_k}]>"
        constants["PERSISTENT"] = config.persistent
    else:
        kernel = linear_pointers
        signature |= {"x": f"*{kind}", "w": f"*{kind}", "x_stride": "i32"}
        constants["EVEN_N"] = n % config.block_n == 0
        constants["EVEN_K"] = k % K_PAD == 0
    signature["y_stride"] = "i32"
    specialised = signature.keys() - {"m"} if aligned else {"w", "y", "bias"} & signature.keys()
    mma = _family(arch, config, kind)
    tile = (m + config.block_n) * block_k * dtype.itemsize
    name = [
        f"linear {kind}->{out_kind} {m}x{config.block_n}x{block_k}",
        f"w{config.warps} s{config.stages}",
        "tma" if config.tma else "pointers",
        *(flag.lower() for flag in _FLAGS if constants.get(flag)),
        *(["bias"] if bias else []),
        *([] if aligned else ["unaligned"]),
    ]
    return Case(
        name=" ".join(name),
        kernel=kernel,
        signature=signature,
        constants=constants,
        warps=config.warps,
        stages=config.stages,
        dtype=kind,
        mma=mma,
        tma=config.tma,
        # The loops of mma.sync and fma keep one stage in registers.
        buffers=tile * (config.stages - (mma in ("mma.sync", "fma"))) if aligned else 0,
        k_steps=block_k if mma == "fma" else block_k // 16,
        weight=f"linear {kind}",
        aligned=frozenset(name for name in specialised if not signature[name].startswith("tensor")),
    )


def _family(arch: int, config: LinearConfig, kind: str) -> str:
    """Return the instructions a configuration compiles to."""
    if kind == "fp32":
        return "fma"
    side = config.block_n if config.swap else config.block_m
    if arch < 90 or side < 64:
        return "mma.sync"
    return "wgmma" if arch < 100 else "tcgen05"
