"""What real launches ask of a device that is only described, for one architecture."""

from __future__ import annotations

from benchmarks.gpu import compiling
from benchmarks.gpu.sizes import QWEN3_1_7B as MODEL


def launches(arch: int) -> list[tuple[str, bool, bool]]:
    """(kernel, launched early, waits for the one before it) of a model's launches."""
    kernels = compiling.describe_device(arch)
    kernels.clear()
    compiling._small(MODEL, 1)
    compiling._attention((MODEL.heads, MODEL.kv_heads, MODEL.head_dim), arch)
    compiling._linear(2048, 2048, None, compiling.torch.bfloat16, compiling.torch.bfloat16)
    return [
        (one.name, one.metadata.launch_pdl, "griddepcontrol.wait" in one.asm["ptx"])
        for one in kernels
    ]
