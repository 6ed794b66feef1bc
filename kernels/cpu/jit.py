"""How every CPU kernel is compiled: Numba, no fast-math, cached on disk, safe threading layer.

Nothing notices an edit in a kernel that another one calls, so the cache's folder is named by a hash
of all kernel sources, what compiles them and the CPU.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import numba
from numba.core import codegen

from detinfer.folders import cache_dir
from detinfer.kernels.cpu.cache import KernelCache

__all__ = ["FEATURES", "LAYERS", "kernel", "numba", "parallel_kernel"]

# workqueue costs 40x more a region and aborts on concurrent entry: refused at start.
LAYERS = ("omp", "tbb")


def _cache_folder() -> Path:
    key = hashlib.sha256()
    here = Path(__file__).resolve().parent
    for source in sorted([*here.rglob("*.py"), here.parent / "constants.py"]):
        key.update(str(source.relative_to(here.parent)).encode() + source.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):  # the last is named in pickles
        key.update(importlib.metadata.version(package).encode())
    key.update(f"{sys.version_info[:2]} {platform.machine()} {_cpu()}".encode())
    return cache_dir() / "kernels" / key.hexdigest()[:16]


def _cpu() -> str:
    return os.environ.get("NUMBA_CPU_NAME") or _host_cpu()


def _host_cpu() -> str:
    from llvmlite import binding

    return str(binding.get_host_cpu_name())


def _features() -> frozenset[str]:
    named = numba.config.CPU_FEATURES
    text = codegen.get_host_cpu_features() if named is None else named
    return frozenset(word[1:] for word in text.split(",") if word.startswith("+"))


# What the CPU that kernels are compiled for has beyond the least of its kind, as LLVM spells it.
FEATURES = _features()

if numba.config.THREADING_LAYER == "default":
    numba.config.THREADING_LAYER_PRIORITY = [*LAYERS, "workqueue"]

_FOLDER = _cache_folder()


def kernel(function, **options):
    """Decorate a function that is compiled when it is first called."""
    dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
    dispatcher._cache = KernelCache(function, _FOLDER)
    return dispatcher


parallel_kernel = functools.partial(kernel, parallel=True)
