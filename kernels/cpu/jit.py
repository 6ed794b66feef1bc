"""How every CPU kernel is compiled: Numba, no fast-math, cached on disk, safe threading layer.

Import this module before numba. Numba's disk cache does not notice an edit in an imported kernel
module, so its folder is keyed by a hash of all kernel sources, the compilers and the CPU.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from detinfer.config import cache_dir

__all__ = ["LAYERS", "kernel", "numba", "parallel_kernel"]

# workqueue costs 40x more a region and aborts on concurrent entry: refused at start.
LAYERS = ("omp", "tbb")


def _cache_folder() -> Path:
    key = hashlib.sha256()
    here = Path(__file__).resolve().parent
    for source in sorted([*here.glob("*.py"), here.parent / "elementary.py"]):
        key.update(source.name.encode() + source.read_bytes())
    for package in ("numba", "llvmlite"):
        key.update(importlib.metadata.version(package).encode())
    key.update(f"{sys.version_info[:2]} {platform.machine()} {_cpu()}".encode())
    return cache_dir() / "kernels" / key.hexdigest()[:16]


def _cpu() -> str:
    return os.environ.get("NUMBA_CPU_NAME") or _host_cpu()


def _host_cpu() -> str:
    from llvmlite import binding

    return str(binding.get_host_cpu_name())


os.environ["NUMBA_CACHE_DIR"] = str(_cache_folder())
import numba  # noqa: E402

numba.config.reload_config()  # in case somebody imported it before us

if numba.config.THREADING_LAYER == "default":
    numba.config.THREADING_LAYER_PRIORITY = [*LAYERS, "workqueue"]

kernel = functools.partial(numba.njit, cache=True, nogil=True, error_model="numpy")
parallel_kernel = functools.partial(kernel, parallel=True)
