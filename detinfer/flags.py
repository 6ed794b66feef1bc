"""Command-line flags that several commands share, and the settings they amount to.

The defaults are those of the frozen configs: a flag that is not given leaves its field alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from detinfer.api_keys import VARIABLE, collect_api_keys
from detinfer.config import DEVICES, DTYPES, NUMERICS, PLANS, EngineConfig, ServerConfig
from detinfer.logs import FORMATS, LEVELS
from detinfer.parser import add_model_argument

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)

_ENGINE_FIELDS = (
    "model",
    "device",
    "numerics",
    "plan",
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_memory",
    "prefix_caching",
    "speculation",
    "threads",
    "default_deterministic",
    "allow_fast",
)


def size(text: str) -> int:
    """Bytes of ``2GiB``, ``512MiB`` or a plain number of bytes."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected bytes, or a size such as 2GiB")
    value = int(float(match[1]) * unit)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected more than nothing")
    return value


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return the type of a flag that takes an integer in ``low..high``."""

    def parse(text: str) -> int:
        good = re.fullmatch(r"-?\d{1,20}", text, re.ASCII)
        if not good or int(text) < low or (high is not None and int(text) > high):
            limits = f"of at least {low}" if high is None else f"in {low}..{high}"
            raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer {limits}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    """Return a duration; 0 is allowed, a day is the most."""
    if not re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) or float(text) > 86400:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected seconds in 0..86400")
    return float(text)


def _origin(text: str) -> str:
    """Return an origin as browsers send it: scheme, host, a port that is not the scheme's own."""
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#@,A-Z]+", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected * or an origin such as https://example.org, without a path"
        )
    return text


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the model and every setting of ``EngineConfig``."""
    defaults = EngineConfig()
    add_model_argument(parser, "a folder, a .gguf file or a hub id")
    group = parser.add_argument_group("engine")

    def add(flag: str, **options: Any) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        default = getattr(defaults, name)
        shown = "" if default is None else f" (default {default})"
        options["help"] += shown
        group.add_argument(flag, default=default, **options)

    add("--device", choices=DEVICES, help="where to compute")
    add("--numerics", choices=NUMERICS, help="profile of the arithmetic contract")
    add("--plan", choices=PLANS, help="how a forward pass runs; all give the same bits")
    add("--dtype", choices=DTYPES, help="dtype of activations and KV cache")
    add("--max-model-len", type=integer(1), metavar="N", help="longest sequence, in tokens")
    add(
        "--max-num-seqs",
        type=integer(1),
        metavar="N",
        help="most sequences in one step (default 64 on CPU, 256 on CUDA)",
    )
    add(
        "--max-num-batched-tokens",
        type=integer(1),
        metavar="N",
        help="most tokens in one step (default 512 on CPU, 8192 on CUDA)",
    )
    add(
        "--kv-cache-memory",
        type=size,
        metavar="SIZE",
        help="the KV cache: bytes, or 2GiB (default 1GiB on CPU, most of what is free on CUDA)",
    )
    add("--threads", type=integer(1), metavar="N", help="CPU threads; all usable cores if not set")
    add(
        "--default-deterministic",
        action=argparse.BooleanOptionalAction,
        help="what a request gets that does not say",
    )
    group.add_argument(
        "--fast-mode",
        dest="allow_fast",
        action=argparse.BooleanOptionalAction,
        default=defaults.allow_fast,
        help="allow requests with deterministic: false, at the cost of a second copy of the "
        f"weights (default {defaults.allow_fast})",
    )
    group.add_argument(
        "--prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=defaults.prefix_caching,
        help="start a prompt from pages that earlier requests have computed "
        f"(default {defaults.prefix_caching})",
    )
    group.add_argument(
        "--speculation",
        action=argparse.BooleanOptionalAction,
        default=defaults.speculation,
        help="guess tokens that repeat earlier ones and verify several at once, to the same bits "
        f"(default {defaults.speculation})",
    )


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """Return the settings that parsed flags amount to.

    Raises:
        ConfigError: settings that contradict each other.
    """
    return EngineConfig(**{name: getattr(args, name) for name in _ENGINE_FIELDS})


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Every setting of ``ServerConfig``."""
    defaults = ServerConfig()
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host", default=defaults.host, help=f"address to listen on (default {defaults.host})"
    )
    group.add_argument(
        "--port",
        type=integer(0, 65535),
        default=defaults.port,
        metavar="N",
        help=f"0 takes a free one (default {defaults.port})",
    )
    group.add_argument(
        "--api-key",
        dest="api_keys",
        action="append",
        default=[],
        metavar="KEY",
        help=f"require this key; may be repeated, and ${VARIABLE} adds one",
    )
    group.add_argument(
        "--api-key-file", metavar="FILE", help="more keys, one a line; # begins a comment"
    )
    group.add_argument(
        "--share-prefix-cache",
        action=argparse.BooleanOptionalAction,
        default=defaults.share_prefix_cache,
        help="let keys share cached prompts, which each can tell by the time an answer takes "
        f"(default {defaults.share_prefix_cache})",
    )
    group.add_argument(
        "--cors-origin",
        dest="cors_origins",
        type=_origin,
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin call, such as https://example.org, or *; may be repeated",
    )
    group.add_argument("--served-model-name", metavar="NAME", help="what clients call the model")
    group.add_argument(
        "--max-queue-size",
        type=integer(0),
        default=defaults.max_queue_size,
        metavar="N",
        help=f"most waiting requests; beyond them 429 (default {defaults.max_queue_size})",
    )
    group.add_argument(
        "--request-timeout",
        type=seconds,
        default=defaults.request_timeout,
        metavar="S",
        help="seconds a client may take to send a request, or read nothing of an answer; 0 for no "
        f"limit (default {defaults.request_timeout:g})",
    )
    group.add_argument(
        "--generation-timeout",
        type=seconds,
        default=defaults.generation_timeout,
        metavar="S",
        help="seconds from an answer's first step to its end, without its time in the queue; 0 for "
        f"no limit (default {defaults.generation_timeout:g})",
    )
    group.add_argument(
        "--shutdown-timeout",
        type=seconds,
        default=defaults.shutdown_timeout,
        metavar="S",
        help=f"seconds running requests get to finish (default {defaults.shutdown_timeout:g})",
    )
    group.add_argument(
        "--exit-on-engine-death",
        action=argparse.BooleanOptionalAction,
        default=defaults.exit_on_engine_death,
        help="end with status 1 when the engine's process has died, so that it is restarted; else "
        f"answer 503 (default {defaults.exit_on_engine_death})",
    )
    group.add_argument(
        "--metrics-prefix",
        default=defaults.metrics_prefix,
        metavar="NAME",
        help="what stands before the colon in the names of metrics: vllm for tools that read "
        f"vLLM's (default {defaults.metrics_prefix})",
    )
    group.add_argument(
        "--access-log",
        action=argparse.BooleanOptionalAction,
        default=defaults.access_log,
        help="a line a request on stderr, without prompts and keys; probes of /health and "
        f"/metrics at level debug only (default {defaults.access_log})",
    )
    group.add_argument(
        "--log-format",
        choices=FORMATS,
        default=defaults.log_format,
        help=f"of every line on stderr (default {defaults.log_format})",
    )
    group.add_argument(
        "--log-level",
        choices=LEVELS,
        default=defaults.log_level,
        help=f"the least that is logged (default {defaults.log_level})",
    )


def server_config(args: argparse.Namespace) -> ServerConfig:
    """Return the server's settings.

    Raises:
        ConfigError: an API key no header can carry, or a file of keys that cannot be used.
    """
    return ServerConfig(
        host=args.host,
        port=args.port,
        api_keys=collect_api_keys(args.api_keys, args.api_key_file),
        share_prefix_cache=args.share_prefix_cache,
        cors_origins=tuple(args.cors_origins),
        served_model_name=args.served_model_name,
        max_queue_size=args.max_queue_size,
        request_timeout=args.request_timeout,
        generation_timeout=args.generation_timeout,
        shutdown_timeout=args.shutdown_timeout,
        exit_on_engine_death=args.exit_on_engine_death,
        metrics_prefix=args.metrics_prefix,
        access_log=args.access_log,
        log_format=args.log_format,
        log_level=args.log_level,
    )
