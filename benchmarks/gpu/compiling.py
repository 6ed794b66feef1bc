"""All kernels compiled first, by all cores, into the cache that the launches after read.

A worker has no GPU. It calls the launchers themselves on CPU tensors, for a device that is only
described, and each launch ends with its compilation; so the cache's keys are the launches' own.
Imports of kernels stand in functions: a worker decides how they are compiled before it imports any.
"""

from __future__ import annotations

import functools
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.gpu.bench import ROOT, Bench, Result, section
from benchmarks.gpu.sizes import Model, Sizes
from detinfer.compile_audit.workers import TaskError, Workers
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.machine import usable_cores

FOLDER = Path(tempfile.gettempdir()) / "detinfer-gpu-suite"
KERNELS = ROOT / "kernels" / "triton"
MULTIPROCESSORS = 132  # only grids depend on it

Job = tuple[int, str, tuple[Any, ...]]  # architecture, function below, arguments


def use_cache() -> list[str]:
    """Make this process compile to, and read from, the workers' cache.

    Returns:
        A list that every kernel is added to which was not there and had to be compiled late.
    """
    import triton

    os.environ["TRITON_CACHE_DIR"] = str(FOLDER / "cache")
    late: list[str] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            late.append(str(src.name))

    triton.knobs.compilation.listener = listen
    settle_keys()
    return late


def settle_keys() -> None:
    """Compute every kernel's part of Triton's cache key, in one order.

    A function's part depends on which of the functions it calls had theirs computed before. So
    processes that launch kernels in another order would not find one another's compilations.
    """
    from triton.runtime.jit import JITCallable

    for path in sorted(KERNELS.glob("*.py")):
        module = importlib.import_module(f"detinfer.kernels.triton.{path.stem}")
        for value in list(vars(module).values()):  # in the order of their definitions
            if isinstance(value, JITCallable):
                value.cache_key  # noqa: B018  (computed once, and kept)


@section("compile", seconds=60)
def compile_all(bench: Bench) -> Result:
    """Every launch of the sections after, compiled."""
    arch = 90 if bench.smoke else _arch(bench.device)
    every = [(arch, name, arguments) for name, arguments in jobs(bench.sizes, arch)]
    chosen = every[:2] if bench.smoke else every
    workers = 1 if bench.smoke else usable_cores()
    FOLDER.mkdir(parents=True, exist_ok=True)
    errors, hashes = [], set()
    with Workers(workers, FOLDER) as pool:
        for job, answer in pool.map(compile_job, chosen):
            if isinstance(answer, TaskError):
                errors.append(f"{job[1]}{job[2]}: {answer}"[:400])
            else:
                hashes.update(answer)
    return {
        "jobs": len(every),
        "compiled_jobs": len(chosen),
        "kernels": len(hashes),
        "workers": workers,
        "errors": errors,
    }


def _arch(device: torch.device) -> int:
    from detinfer.kernels.triton.launch import architecture

    return architecture(device)


def jobs(sizes: Sizes, arch: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Return what is to be compiled: the slowest first."""
    found: dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]] = {}
    for key, job in _linears(sizes, arch):
        found.setdefault(key, job)
    for model in dict.fromkeys((*sizes.bits, *sizes.speed, sizes.small, sizes.large)):
        shape = (model.heads, model.kv_heads, model.head_dim)
        found.setdefault(("attention", shape), ("attention", (shape, arch)))
        for rows in (1, 1024):
            found.setdefault(("small", model, rows), ("small", (model, rows)))
    return sorted(found.values(), key=lambda job: job[0] != "attention")


def _linears(sizes: Sizes, arch: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
    from benchmarks.gpu.bits import families
    from benchmarks.gpu.linear_speed import candidates
    from detinfer.kernels.triton import matmul

    for config in families(smoke=False).values():
        for dtype in (torch.bfloat16, torch.float16):
            arguments = (64, 4096, config, torch.float32, dtype)
            yield ("family", config, dtype), ("linear", arguments)

    for model in dict.fromkeys((*sizes.bits, *sizes.speed)):
        for n, k in model.linears().values():
            table = matmul.configs(arch, torch.bfloat16, n, k)
            tried = [c for m in sizes.swept for c in candidates(arch, n, m)]
            for config in dict.fromkeys((*table, *tried)):
                for out in (torch.bfloat16, torch.float32):
                    even = not config.tma and (n % config.block_n == 0, k % 128 == 0)
                    arguments = (n, k, config, out, torch.bfloat16)
                    yield ("linear", config, out, even), ("linear", arguments)


# In the workers.


def compile_job(job: Job) -> set[str]:
    """Compile what one job launches; the hashes of the kernels."""
    arch, name, arguments = job
    kernels = describe_device(arch)
    kernels.clear()
    {"linear": _linear, "attention": _attention, "small": _small}[name](*arguments)
    _build_launchers(kernels)
    return {kernel.hash for kernel in kernels}


@functools.cache
def describe_device(arch: int) -> list[Any]:
    """From now on this process has a GPU of that architecture, on which launches only compile.

    Returns:
        A list that every launch adds its compiled kernel to.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    settle_keys()
    described: Any = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
    )
    driver.set_active(described)
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    torch.cuda.get_device_capability = lambda device=None: divmod(arch, 10)
    torch.cuda.get_device_properties = lambda device=None: properties
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))
        return kernels[-1]

    JITFunction.run = compile_only
    return kernels


def _build_launchers(kernels: list[Any]) -> None:
    """Triton 3.6 builds a C function for every signature; later versions need none."""
    from triton.backends.nvidia import driver

    if hasattr(driver, "make_launcher") and Path("/dev/nvidiactl").exists():
        for kernel in kernels:
            driver.CudaLauncher(kernel.src, kernel.metadata)


def _linear(n: int, k: int, config: Any, out: torch.dtype, dtype: torch.dtype) -> None:
    from detinfer.kernels.triton import matmul

    x = torch.empty(16, k, dtype=dtype)
    weight = matmul.Weight(torch.empty(n, k, dtype=dtype))
    matmul.linear(x, weight, out_dtype=out, config=config)


def _attention(shape: tuple[int, int, int], arch: int) -> None:
    from benchmarks.gpu.attention_bits import variants
    from benchmarks.gpu.paged import Paged

    for config in (None, *variants(arch, shape[2])):
        for rows in (1, 64):
            Paged.random(torch.device("cpu"), shape, [(0, rows), (600, rows)]).run(config)


def _small(model: Model, rows: int) -> None:
    from detinfer.kernels.triton import activation, embedding, logits, norms, rope

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    x, weight = empty(rows, model.hidden), empty(model.hidden)
    norms.rms_norm(x, weight, model.eps, "scale_rounded")
    norms.rms_norm(x, weight, model.eps, "scale_rounded", residual=empty(rows, model.hidden))
    joined = empty(rows, 2 * model.inner)
    activation.silu_mul(joined[:, : model.inner], joined[:, model.inner :])
    ids = torch.zeros(rows, dtype=torch.int32)
    embedding.embedding(ids, empty(model.vocab, model.hidden))
    logits.summarise(empty(2, model.vocab, dtype=torch.float32))
    cache = [empty(2, model.kv_heads, PAGE_SIZE, model.head_dim) for _ in "kv"]
    angles = [empty(model.length, model.head_dim // 2, dtype=torch.float32) for _ in "cs"]
    qkv = empty(rows, (model.heads + 2 * model.kv_heads) * model.head_dim)
    normed = model.architecture == "qwen3"
    rope.rotate_and_cache(
        qkv, ids, ids, *angles, *cache,
        heads=model.heads, kv_heads=model.kv_heads, eps=model.eps if normed else 0.0,
        q_norm=empty(model.head_dim) if normed else None,
        k_norm=empty(model.head_dim) if normed else None,
    )  # fmt: skip
