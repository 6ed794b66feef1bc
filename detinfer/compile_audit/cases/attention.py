"""What the launch table of paged attention compiles."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from detinfer.compile_audit.cases import Case
from detinfer.kernels.triton.attention_kernels import UNALIGNED, attend_kernel, merge_kernel
from detinfer.kernels.triton.attention_table import (
    MERGE_HEADS,
    AttentionConfig,
    configs,
    padded,
)
from detinfer.kernels.triton.attention_work import BLOCK
from detinfer.kernels.triton.launch import TRITON_DTYPES

# Head dimensions, softcap and sinks of models: Qwen3 and Llama; SmolLM2; gpt-oss; Gemma 2; and
# those that pad.
_SHAPES = (
    (128, 128, False, False),
    (64, 64, False, False),
    (64, 64, False, True),
    (256, 256, True, False),
    (128, 128, True, True),
    (80, 80, False, False),
    (192, 128, False, False),
)
_POINTERS = {"tables": "*i32", "work": "*i32", "parts_o": "*fp32", "parts_ml": "*fp32"}


def cases(arch: int) -> Iterator[Case]:
    """Yield an architecture's compilations."""
    pads = arch in (80, 90)
    for dtype, shapes in (
        (torch.bfloat16, _SHAPES if pads else _SHAPES[:5]),
        (torch.float16, _SHAPES[:1]),
        (torch.float32, _SHAPES[:2]),
    ):
        for k_dim, v_dim, softcap, sinks in shapes:
            chosen = configs(arch, dtype, k_dim, v_dim)
            launches = [(chosen.prefill, chosen.whole), (chosen.decode, False)]
            if arch >= 90 and dtype == torch.bfloat16 and not softcap and k_dim == v_dim:
                launches.append((configs(arch, dtype, k_dim, v_dim, mix=False).decode, False))
            for config, whole in dict.fromkeys(launches):
                yield _case(arch, dtype, k_dim, v_dim, config, whole, softcap, sinks)
    for dtype, v_dim, sinks in ((torch.bfloat16, 128, False), (torch.bfloat16, 64, True)):
        name = TRITON_DTYPES[dtype]
        yield Case(
            name=f"attention merge {name} {v_dim}{' sinks' if sinks else ''}",
            kernel=merge_kernel,
            signature={
                **{p: _POINTERS.get(p, f"*{name}") for p in merge_kernel.arg_names[:5]},
                "heads": "i32",
                "merges_at": "i32",
            },
            constants={
                "V_DIM": v_dim,
                "V_PAD": padded(v_dim),
                "HEADS": MERGE_HEADS,
                "SINKS": sinks,
            },
            warps=1,
            dtype=name,
            aligned=frozenset(merge_kernel.arg_names[:5]) - set(UNALIGNED),
        )


def _case(
    arch: int,
    dtype: torch.dtype,
    k_dim: int,
    v_dim: int,
    config: AttentionConfig,
    whole: bool,
    softcap: bool,
    sinks: bool,
) -> Case:
    name, rows = TRITON_DTYPES[dtype], config.block_m
    mma = "fma" if dtype == torch.float32 else "mma.sync"
    if mma != "fma" and arch >= 90 and rows >= 64:
        mma = "wgmma" if arch == 90 else "tcgen05"
    pointers = attend_kernel.arg_names[:9]
    strides = attend_kernel.arg_names[9:11]
    block = BLOCK * (padded(k_dim) + padded(v_dim)) * dtype.itemsize
    return Case(
        name=f"attention {name} {k_dim}/{v_dim} {rows}x{config.warps}x{config.stages}"
        f"{' whole' if whole else ' split'}{' softcap' if softcap else ''}"
        f"{' sinks' if sinks else ''}",
        kernel=attend_kernel,
        signature={
            **{p: _POINTERS.get(p, f"*{name}") for p in pointers},
            **dict.fromkeys(attend_kernel.arg_names[9:16], "i32"),
            "sigma": "fp32",
            "kappa": "fp32",
            "items_at": "i32",
            "count_at": "i32",
        },
        constants={
            "K_DIM": k_dim,
            "V_DIM": v_dim,
            "K_PAD": padded(k_dim),
            "V_PAD": padded(v_dim),
            "BLOCK_M": rows,
            "WHOLE": whole,
            "SOFTCAP": softcap,
            "SINKS": sinks,
        },
        warps=config.warps,
        stages=config.stages,
        dtype=name,
        mma=mma,
        buffers=(config.stages - (mma != "wgmma")) * block,
        aligned=frozenset((*pointers, *strides)) - set(UNALIGNED),
    )
