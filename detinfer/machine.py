"""How much memory there is, and whether an engine's settings fit it."""

from __future__ import annotations

from pathlib import Path

from detinfer.config import EngineConfig
from detinfer.errors import ConfigError

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


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


def check_pool(config: EngineConfig) -> None:
    """Refuse a page pool that cannot be held, before anything is loaded.

    Raises:
        ConfigError: with what is available.
    """
    available, wanted = available_memory(), config.kv_cache_memory
    if config.device == "cuda" or available is None or wanted is None:
        return
    if wanted > available:
        raise ConfigError(
            f"kv_cache_memory: got {_size(wanted)}, but {_size(available)} of memory are available"
        )


def check_logits(config: EngineConfig, vocab_size: int) -> None:
    """Refuse a step whose logits alone, a row of float32 for each sequence, cannot be held.

    Raises:
        ConfigError: with what they need and what is available.
    """
    available, seqs = available_memory(), config.max_num_seqs
    if config.device == "cuda" or available is None or seqs is None:
        return
    wanted = 4 * vocab_size * seqs
    if wanted > available:
        raise ConfigError(
            f"max_num_seqs: got {seqs}, but the logits of so many sequences need {_size(wanted)}, "
            f"and {_size(available)} of memory are available"
        )


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"
