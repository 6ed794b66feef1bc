"""The machine's facts and ceilings, and how kernels are timed on it."""

from __future__ import annotations

import math
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common import interleaved, machine, median
from benchmarks.gpu.bench import Bench, Result, section

Call = Callable[[], Any]

_L2_BYTES = 64 << 20  # more than an H200's 60 MB
_BEYOND_L2 = 4 * _L2_BYTES  # data of one replay, so that none of it is found in the cache
_REPLAY = 400e-6  # seconds a replay should take at least, against the events' own resolution


def copies_beyond_cache(size: int) -> int:
    """Return the copies of ``size`` bytes to walk over so that none is in the L2 at its turn."""
    return max(1, math.ceil(_BEYOND_L2 / max(size, 1)))


class Timer:
    """Times launches: on a GPU several in one CUDA graph, between events.

    A write of 512 MB stands before each replay: it empties the L2, and keeps the device busy while
    the host submits the events and the graph, so that the host's time is in no figure.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._flush = torch.empty(512 << 20 if self._cuda else 0, dtype=torch.uint8, device=device)

    def measure(self, calls: Sequence[Call]) -> Callable[[], float]:
        """Return a measure of the seconds one of the calls takes, them following one another."""
        if not self._cuda:
            return lambda: _host_seconds(calls)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:  # compiles, loads, and makes cuBLAS take its workspace
                call()
            torch.cuda.synchronize()
            started = time.perf_counter()
            for call in calls:
                call()
            torch.cuda.synchronize()
            once = time.perf_counter() - started
        torch.cuda.current_stream().wait_stream(stream)
        rounds = min(16, max(1, math.ceil(_REPLAY / once)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in list(calls) * rounds:
                call()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def seconds() -> float:
            self._flush.fill_(1)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) * 1e-3 / (rounds * len(calls))

        return seconds

    def medians(self, calls: Mapping[str, Sequence[Call]], repeats: int) -> dict[str, float]:
        """Return the median seconds of a call of each name; repeats interleaved."""
        measures = {name: self.measure(several) for name, several in calls.items()}
        return {name: median(values) for name, values in interleaved(measures, repeats).items()}


def _host_seconds(calls: Sequence[Call]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - start) / len(calls)


def normal(bench: Bench, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Random data: zeros would run faster."""
    data = torch.empty(shape, dtype=dtype, device=bench.device)
    return data.normal_(generator=bench.generator(seed))


def machine_facts() -> dict[str, Any]:
    """Processor, versions and commit; less of it where git or a package is missing."""
    try:
        return machine()
    except (FileNotFoundError, PackageNotFoundError):
        names = ("torch", "transformers", "numpy")
        return {"python": platform.python_version(), **{name: version(name) for name in names}}


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """Return what the results were measured on."""
    if device.type != "cuda":
        return {"gpu": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "nvidia_smi": _nvidia_smi(),
    }


def _nvidia_smi() -> str:
    query = (
        "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    )
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


@section("device", seconds=20)
def device_facts(bench: Bench) -> Result:
    """Facts, and the ceilings that all other figures refer to."""
    gigabytes = 1e-9
    size, side = (4 << 30, 8192) if not bench.smoke else (1 << 20, 64)
    timer = Timer(bench.device)
    source = normal(bench, size // 2)
    target = torch.empty_like(source)
    a, b = normal(bench, side, side, seed=1), normal(bench, side, side, seed=2)
    product = torch.empty_like(a)
    seconds = timer.medians(
        {
            # By a kernel: what a captured graph copies by is slower.
            "copy": [lambda: torch.neg(source, out=target)],
            "read": [lambda: torch.amax(source.view(torch.int64))],
            "matmul": [lambda: torch.mm(a, b.T, out=product)] * 4,
        },
        bench.sizes.repeats,
    )
    return {
        **gpu_facts(bench.device),
        "copy_gb_s": 2 * size * gigabytes / seconds["copy"],
        "read_gb_s": size * gigabytes / seconds["read"],
        "matmul_tflop_s": 2 * side**3 * 1e-12 / seconds["matmul"],
        "sdpa_prefill_kernels": sdpa_kernel_names(bench),
    }


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """PyTorch's flash attention; on a CPU whatever it has."""
    if q.device.type != "cuda":
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def sdpa_kernel_names(bench: Bench) -> list[str]:
    """Return the kernels that prefill attention is measured against: FA2's or FA3's."""
    if bench.device.type != "cuda":
        return []
    from torch.profiler import ProfilerActivity, profile

    q = normal(bench, 1, 32, 1024, 128)
    k = normal(bench, 1, 8, 1024, 128)
    sdpa(q, k, k)
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            sdpa(q, k, k)
            torch.cuda.synchronize()
    except RuntimeError as error:  # a machine that lets nobody profile
        return [f"unknown: {error}"[:200]]
    names = {event.key for event in recorded.key_averages()}
    return sorted(re.sub(r"\s+", " ", name)[:200] for name in names if "flash" in name.lower())
