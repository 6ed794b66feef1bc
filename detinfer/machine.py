"""What this machine has of cores and memory, and whether an engine's settings fit it."""

from __future__ import annotations

import os
from pathlib import Path

from detinfer.config import ResolvedConfig
from detinfer.errors import ConfigError, ModelLoadError

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def usable_cores() -> int:
    """Cores this process may use: its affinity, and its control group's share of them."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:  # a container's --cpus: "quota period" in microseconds, or "max period"
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def cpu_threads(asked: int | None) -> int:
    """CPU threads of an engine: as asked, else as many as may be.

    Raises:
        ConfigError: more than there are cores or ``NUMBA_NUM_THREADS`` allows, or less than one.
    """
    most, why = usable_cores(), "usable cores"
    limit = os.environ.get("NUMBA_NUM_THREADS", "")
    if limit.isdecimal() and 0 < int(limit) < most:
        most, why = int(limit), "NUMBA_NUM_THREADS"
    threads = most if asked is None else asked
    if not 1 <= threads <= most:
        raise ConfigError(f"threads: got {threads}, expected 1..{most} ({why})")
    return threads


def available_memory() -> int | None:
    """Bytes this process could still use: the machine's, and what its control group leaves.

    None where the system does not say.
    """
    bounds = []
    try:
        [line] = [one for one in MEMINFO.read_text().splitlines() if "MemAvailable" in one]
        bounds.append(int(line.split()[1]) << 10)
    except (OSError, ValueError):
        pass
    try:
        limit, used = (int((CGROUP / f"memory.{of}").read_text()) for of in ("max", "current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files that nobody has used lately are given up before anything is refused.
        bounds.append(max(0, limit - used + int(stat["inactive_file"])))
    except (OSError, ValueError, KeyError):  # "max" is no limit
        pass
    return min(bounds, default=None)


def check_pool(config: ResolvedConfig) -> None:
    """Refuse a page pool that cannot be held, before anything is loaded.

    Raises:
        ConfigError: with what is available.
    """
    available, wanted = available_memory(), config.kv_cache_memory
    if config.device == "cpu" and available is not None and wanted > available:
        raise ConfigError(
            f"kv_cache_memory: got {_size(wanted)}, but {_size(available)} of memory are available"
        )


def check_weights(model: str, size: int) -> None:
    """Refuse weights that cannot be held, before they are read.

    Args:
        model: its name.
        size: of its weights as they are stored, in bytes.

    Raises:
        ModelLoadError: with what is available.
    """
    available = available_memory()
    if available is not None and size > available:
        raise ModelLoadError(
            f"model {model}: its weights take {_size(size)}, but {_size(available)} of memory are "
            "available"
        )


def check_logits(config: ResolvedConfig, vocab_size: int) -> None:
    """Refuse a step whose logits alone, a row of float32 for each sequence, cannot be held.

    Raises:
        ConfigError: with what they need and what is available.
    """
    available, seqs = available_memory(), config.max_num_seqs
    wanted = 4 * vocab_size * seqs
    if config.device == "cpu" and available is not None and wanted > available:
        raise ConfigError(
            f"max_num_seqs: got {seqs}, but the logits of so many sequences need {_size(wanted)}, "
            f"and {_size(available)} of memory are available"
        )


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"
