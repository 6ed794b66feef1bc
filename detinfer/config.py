"""Engine and server settings: frozen, and the one source of the CLI's defaults."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from detinfer.errors import ConfigError
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.logs import FORMATS, LEVELS

DEVICES = ("auto", "cpu", "cuda")
NUMERICS = ("auto", "portable", "native")
PLANS = ("auto", "modules", "fused")
DTYPES = ("auto", "float32", "bfloat16", "float16")
WEIGHTS = ("auto", "packed", "dequantized")
QUANTIZE = ("q8_0", "q4_0", "q4_1", "q4_k")
KV_CACHE_DTYPES = ("auto", "float32", "bfloat16")
TOOL_CALL_PARSERS = ("auto", "hermes", "llama3_json", "mistral", "json")
REASONING_PARSERS = ("none", "deepseek_r1", "qwen3")
_CHOICES = {
    "device": DEVICES,
    "numerics": NUMERICS,
    "plan": PLANS,
    "dtype": DTYPES,
    "weights": WEIGHTS,
    "kv_cache_dtype": KV_CACHE_DTYPES,
}


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is started with. ``None`` means: decided from the model or the machine.

    Raises:
        ConfigError: naming the first field that cannot work.

    Attributes:
        model: folder, ``.gguf`` file or hub id; None, or its name, is the default model.
        device: where to compute; auto is the CPU.
        numerics: profile of the arithmetic contract; auto is portable on CPU, native on CUDA.
        dtype: dtype of activations; auto is float32 on CPU, the checkpoint's on CUDA.
        weights: what a GGUF file's quantised blocks become: packed keeps and multiplies them as
            integers (profile portable alone), dequantized makes bfloat16 of them; auto is packed
            under portable, dequantized under native, and nothing for files without blocks.
        quantize: format that the linear layers of a Hugging Face checkpoint are rounded to, once,
            to be multiplied as integers (profile portable); None leaves them as they are.
        max_model_len: longest sequence (prompt + output) in tokens.
        max_num_seqs: most sequences in one step; 64 on CPU, 256 on CUDA.
        max_num_batched_tokens: most tokens in one step, longer prompts are split into chunks; 512
            on CPU, 8192 on CUDA.
        kv_cache_memory: bytes of the KV page pool; 1 GiB on CPU, nine tenths of what the weights
            leave free on CUDA.
        kv_cache_dtype: what keys and values are rounded to, once, when they are cached; auto is
            float32 in profile portable, the activations' in profile native, which has no other.
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
    weights: str = "auto"
    quantize: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_memory: int | None = None
    kv_cache_dtype: str = "auto"
    prefix_caching: bool = True
    speculation: bool = True
    threads: int | None = None
    default_deterministic: bool = True
    allow_fast: bool = True

    def __post_init__(self) -> None:
        if self.model is not None and not (
            isinstance(self.model, str | os.PathLike) and self.model
        ):
            raise ConfigError(f"model: got {self.model!r}, expected a path, a hub id or None")
        for name, known in _CHOICES.items():
            _choice(self, name, known)
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory"):
            _integer(self, name, low=1, optional=True)
        _integer(self, "threads", low=None, optional=True)  # the bounds are the machine's
        for name in ("prefix_caching", "speculation", "default_deterministic", "allow_fast"):
            _boolean(self, name)
        if self.device == "cuda" and self.numerics == "portable":
            raise ConfigError(
                "numerics: got 'portable' with device 'cuda', expected native (portable runs on "
                "the CPU only)"
            )
        if self.weights == "packed" and self.resolve().profile == "native":
            raise ConfigError(
                "weights: got 'packed' with profile native, expected dequantized (packed is built "
                "for the CPU's portable only)"
            )
        if self.kv_cache_dtype != "auto" and self.resolve().profile == "native":
            raise ConfigError(
                f"kv_cache_dtype: got {self.kv_cache_dtype!r} with profile native, expected auto "
                "(its pages have the dtype of the activations)"
            )
        if self.quantize is not None:
            self._check_quantize()

    def _check_quantize(self) -> None:
        _choice(self, "quantize", QUANTIZE)
        if self.weights == "dequantized":
            raise ConfigError(
                f"quantize: got {self.quantize!r} with weights 'dequantized', expected auto or "
                "packed"
            )
        if self.resolve().profile == "native":
            raise ConfigError(
                f"quantize: got {self.quantize!r} with profile native, expected None (blocks are "
                "multiplied in the CPU's portable only)"
            )

    def resolve(self) -> ResolvedConfig:
        """Return the settings with what the device decides filled in."""
        device = "cpu" if self.device == "auto" else self.device
        on_cpu = device == "cpu"
        by_device = "portable" if on_cpu else "native"
        profile = by_device if self.numerics == "auto" else self.numerics
        decided = {"auto": "float32"} if profile == "portable" else {}
        return ResolvedConfig(
            model=self.model,
            device=device,
            profile=profile,
            plan=self.plan,
            dtype=decided.get(self.dtype, self.dtype),
            weights="dequantized" if profile == "native" else self.weights,
            quantize=self.quantize,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs or (64 if on_cpu else 256),
            max_num_batched_tokens=self.max_num_batched_tokens or (512 if on_cpu else 8192),
            kv_cache_memory=self.kv_cache_memory or (1 << 30 if on_cpu else 0),
            kv_cache_dtype=decided.get(self.kv_cache_dtype, self.kv_cache_dtype),
            prefix_caching=self.prefix_caching,
            speculation=self.speculation,
            threads=self.threads,
            allow_fast=self.allow_fast,
        )


@dataclass(frozen=True)
class ResolvedConfig:
    """What an engine computes with: made once, of an ``EngineConfig``, where one is started.

    Attributes:
        device: cpu or cuda.
        profile: portable or native.
        plan: auto is fused where the model has such a plan.
        dtype: of activations; auto, in profile native alone, is the checkpoint's.
        weights: auto, in profile portable alone, is packed where a file has blocks.
        quantize: None is not at all.
        max_model_len: None is the model's own.
        kv_cache_memory: 0, on CUDA alone, is nine tenths of what the weights leave free.
        kv_cache_dtype: auto, in profile native alone, is the activations'.
        threads: None is every core that may be used.
    """

    model: str | None
    device: str
    profile: str
    plan: str
    dtype: str
    weights: str
    quantize: str | None
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_memory: int
    kv_cache_dtype: str
    prefix_caching: bool
    speculation: bool
    threads: int | None
    allow_fast: bool


@dataclass(frozen=True)
class ServerConfig:
    """What the HTTP side is started with.

    Raises:
        ConfigError: naming the first field that cannot work.

    Attributes:
        api_keys: one of them is needed for all but the public routes; empty opens everything.
        share_prefix_cache: whether a key's prompts may start from pages that another key's have
            computed, which tells the one by its timing what the other has asked.
        cors_origins: origins of pages whose scripts may call; "*" is every page.
        served_model_name: what clients call the model; None is its own name.
        max_queue_size: requests that may wait; one more is a 429, and so are more bodies or prompt
            tokens than memory is set aside for.
        request_timeout: seconds a client may take to send a request, or read nothing of an answer;
            0 is for ever.
        generation_timeout: seconds an answer may take from its first step on, waiting not
            included; 0 is for ever.
        shutdown_timeout: seconds that running requests get to finish.
        exit_on_engine_death: whether the server ends, with status 1, when its engine has; else it
            stays to answer 503.
        receipt_key: a file with the private key that signs receipts: Ed25519, PEM; None signs none.
        tool_call_parser: how the model writes calls of tools; auto goes by its chat template.
        reasoning_parser: how it marks its reasoning, which is then set apart.
        metrics_prefix: what stands before the colon in the names of metrics.
        access_log: whether each request is logged.
        log_format: of every line on stderr.
        log_level: the least that is logged.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    share_prefix_cache: bool = False
    cors_origins: tuple[str, ...] = ()
    served_model_name: str | None = None
    max_queue_size: int = 4096
    request_timeout: float = 20.0
    generation_timeout: float = 600.0
    shutdown_timeout: float = 30.0
    exit_on_engine_death: bool = True
    receipt_key: str | None = None
    tool_call_parser: str = "auto"
    reasoning_parser: str = "none"
    metrics_prefix: str = "detinfer"
    access_log: bool = True
    log_format: str = "text"
    log_level: str = "info"

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host:
            raise ConfigError(f"host: got {self.host!r}, expected an address or a name")
        _integer(self, "port", low=0, high=65535)
        _integer(self, "max_queue_size", low=0)
        for name in ("request_timeout", "generation_timeout", "shutdown_timeout"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < float("inf"):
                raise ConfigError(f"{name}: got {value!r}, expected seconds, 0 or more")
        prefix = self.metrics_prefix
        if not isinstance(prefix, str) or not re.fullmatch(r"[A-Za-z_]\w*", prefix, re.ASCII):
            raise ConfigError(
                f"metrics_prefix: got {prefix!r}, expected letters, digits and _, such as vllm"
            )
        _choice(self, "tool_call_parser", TOOL_CALL_PARSERS)
        _choice(self, "reasoning_parser", REASONING_PARSERS)
        _choice(self, "log_format", FORMATS)
        _choice(self, "log_level", LEVELS)
        for name in ("share_prefix_cache", "exit_on_engine_death", "access_log"):
            _boolean(self, name)
        for name in ("api_keys", "cors_origins"):
            value = getattr(self, name)
            several = isinstance(value, tuple | list)
            if not several or not all(isinstance(one, str) and one for one in value):
                raise ConfigError(f"{name}: expected a tuple of strings that are not empty")
        for name in ("served_model_name", "receipt_key"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise ConfigError(f"{name}: got {value!r}, expected a name or None")


def _integer(
    config: object, name: str, low: int | None, high: int | None = None, optional: bool = False
) -> None:
    value = getattr(config, name)
    if value is None and optional:
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (low is not None and value < low) or (high is not None and value > high):
        bounds = "" if low is None else f" in {low}..{high}" if high else f" of at least {low}"
        raise ConfigError(f"{name}: got {value!r}, expected an integer{bounds}")


def _choice(config: object, name: str, known: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{name}: got {value!r}, expected one of {', '.join(known)}")


def _boolean(config: object, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: got {value!r}, expected True or False")


def longest_sequence(max_model_len: int, num_pages: int) -> int:
    """Most tokens of one prompt and its answer: the model's length, or the pool if that is less."""
    return min(max_model_len, num_pages * PAGE_SIZE)


def pages_for(num_tokens: int) -> int:
    """Pages that hold that many tokens."""
    return -(-num_tokens // PAGE_SIZE)
