"""Engine and server settings: frozen, and the one source of the CLI's defaults."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from detinfer.errors import ConfigError

PAGE_SIZE = 64  # tokens in one KV page; also the attention block of the arithmetic contract

DEVICES = ("auto", "cpu", "cuda")
NUMERICS = ("auto", "portable", "native")
PLANS = ("auto", "modules", "fused")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is started with. ``None`` means: decided from the model or the machine.

    Attributes:
        model: folder, ``.gguf`` file or hub id; None is the default model.
        device: where to compute; auto is the CPU.
        numerics: profile of the arithmetic contract; auto is portable on CPU, native on CUDA.
        dtype: dtype of activations and KV cache; auto is float32 on CPU, the checkpoint's on CUDA.
        max_model_len: longest sequence (prompt + output) in tokens.
        max_num_seqs: most sequences in one step; 64 on CPU, 256 on CUDA.
        max_num_batched_tokens: most tokens in one step, longer prompts are split into chunks; 512
            on CPU, 8192 on CUDA.
        kv_cache_memory: bytes of the KV page pool; 1 GiB on CPU, nine tenths of what the weights
            leave free on CUDA.
        speculation: whether tokens are guessed from earlier ones and verified several at once.
        prefix_caching: whether a prompt starts from pages that earlier requests have computed.
        threads: CPU threads of the engine; None is the number of usable cores.
        default_deterministic: what a request gets that does not say.
        allow_fast: whether ``deterministic: false`` may run PyTorch's stock ops; when off such
            requests are refused, and no second copy of the weights is ever made.
    """

    model: str | None = None
    device: str = "auto"
    numerics: str = "auto"
    plan: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_memory: int | None = None
    prefix_caching: bool = True
    speculation: bool = True
    threads: int | None = None
    default_deterministic: bool = True
    allow_fast: bool = True

    def resolve(self) -> EngineConfig:
        """The same settings with what the device decides filled in; the model's stay None.

        Raises:
            ConfigError: a profile that does not run on the device.
        """
        device = "cpu" if self.device == "auto" else self.device
        on_cpu = device == "cpu"
        by_device = "portable" if on_cpu else "native"
        if device == "cuda" and self.numerics == "portable":
            raise ConfigError(
                "numerics: got 'portable' with device 'cuda', expected native (portable runs on "
                "the CPU only)"
            )
        return replace(
            self,
            device=device,
            numerics=by_device if self.numerics == "auto" else self.numerics,
            max_num_seqs=self.max_num_seqs or (64 if on_cpu else 256),
            max_num_batched_tokens=self.max_num_batched_tokens or (512 if on_cpu else 8192),
            kv_cache_memory=self.kv_cache_memory or (1 << 30 if on_cpu else None),
        )


@dataclass(frozen=True)
class ServerConfig:
    """What the HTTP side is started with.

    Attributes:
        api_keys: one of them is needed for all but the public routes; empty opens everything.
        share_prefix_cache: whether a key's prompts may start from pages that another key's have
            computed, which tells the one by its timing what the other has asked.
        cors_origins: origins of pages whose scripts may call; "*" is every page.
        served_model_name: what clients call the model; None is its own name.
        max_queue_size: requests that may wait; one more is a 429.
        request_timeout: seconds a client may take to send a request, or read nothing of an answer;
            0 is for ever.
        generation_timeout: seconds a call may take once it has arrived; 0 is for ever.
        shutdown_timeout: seconds that running requests get to finish.
        access_log: whether each request is logged, as a line of JSON.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    share_prefix_cache: bool = False
    cors_origins: tuple[str, ...] = ()
    served_model_name: str | None = None
    max_queue_size: int = 256
    request_timeout: float = 20.0
    generation_timeout: float = 600.0
    shutdown_timeout: float = 30.0
    access_log: bool = True


def longest_sequence(max_model_len: int, num_pages: int) -> int:
    """Most tokens of one prompt and its answer: the model's length, or the pool if that is less."""
    return min(max_model_len, num_pages * PAGE_SIZE)


def cache_dir() -> Path:
    """Fetched models and compiled kernels: ``$DETINFER_CACHE``, else ~/.cache/detinfer."""
    configured = os.environ.get("DETINFER_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "detinfer"


def usable_cores() -> int:
    """Cores this process may use: its affinity, and its control group's share of them."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:  # a container's --cpus: "quota period" in microseconds, or "max period"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
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
