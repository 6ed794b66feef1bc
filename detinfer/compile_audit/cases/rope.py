"""Rotation with the cache write, at the heads of real models."""

from __future__ import annotations

from collections.abc import Iterator

from detinfer.compile_audit.cases import Case
from detinfer.kernels.triton.cache import MANY_TOKENS, configuration
from detinfer.kernels.triton.numeric import lanes_of
from detinfer.kernels.triton.rope import rotate_and_cache_kernel


def cases(arch: int) -> Iterator[Case]:
    """Yield an architecture's compilations."""
    few, many = 1, MANY_TOKENS
    yield _rotate_case("bf16", 32, 8, 128, few, norm=True)
    yield _rotate_case("bf16", 32, 8, 128, many, norm=True)
    yield _rotate_case("bf16", 32, 8, 128, many, norm=False)
    if arch == 90:
        yield _rotate_case("bf16", 32, 8, 128, few, norm=False)
        for tokens in (few, many):
            yield _rotate_case("bf16", 9, 3, 64, tokens, norm=False)
            yield _rotate_case("bf16", 16, 8, 128, tokens, norm=True)
        yield _rotate_case("fp16", 32, 8, 128, many, norm=True)
        yield _rotate_case("fp32", 9, 3, 64, few, norm=False)


def _rotate_case(dtype: str, heads: int, kv_heads: int, size: int, tokens: int, norm: bool) -> Case:
    block, warps = configuration(size, tokens)
    tensors = ("qkv", "k_cache", "v_cache", "q_norm", "k_norm", "out")
    signature = dict.fromkeys(tensors, f"*{dtype}")
    signature |= {"positions": "*i32", "slots": "*i32", "cos": "*fp32", "sin": "*fp32"}
    signature |= {"row_stride": "i32", "k_page": "i32", "v_page": "i32", "eps": "fp32"}
    constants = {"Q_HEADS": heads, "KV_HEADS": kv_heads, "D": size, "LANES": lanes_of(size),
                 "HALF": size // 2, "HEADS": block, "VARIANT": "none", "WIDE": False,
                 "q_norm": None, "k_norm": None}  # fmt: skip
    if norm:
        del constants["q_norm"], constants["k_norm"]
        constants["VARIANT"] = "scale_rounded"
    signature = {name: kind for name, kind in signature.items() if name not in constants}
    return Case(
        name=f"rotate_and_cache {dtype} {heads}/{kv_heads}x{size} {constants['VARIANT']} "
        f"heads {block} w{warps}",
        kernel=rotate_and_cache_kernel,
        signature=signature,
        constants=constants,
        warps=warps,
        dtype=dtype,
        aligned=frozenset(signature) - {"eps"},
    )
