"""Command-line flags that several commands share, and the settings they amount to.

The defaults are those of the frozen configs: a flag that is not given leaves its field alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from detinfer.api_keys import VARIABLE, collect_api_keys
from detinfer.cli.parser import add_model_argument
from detinfer.cli.solver_flags import add_served_solvers
from detinfer.config import (
    DEVICES,
    DTYPES,
    KV_CACHE_DTYPES,
    NUMERICS,
    PLANS,
    QUANTIZE,
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
    WEIGHTS,
    EngineConfig,
    ServerConfig,
)
from detinfer.logs import FORMATS, LEVELS

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)


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
    add_model_argument(parser, "a folder, a .gguf file or a hub id")
    group = parser.add_argument_group("engine")

    def add(flag: str, text: str, **options: Any) -> None:
        _add(group, EngineConfig(), flag, text, **options)

    add("--device", "where to compute", choices=DEVICES)
    add("--numerics", "profile of the arithmetic contract", choices=NUMERICS)
    add("--plan", "how a forward pass runs; all give the same bits", choices=PLANS)
    add("--dtype", "dtype of activations", choices=DTYPES)
    add_weights_flags(group)
    add("--max-model-len", "longest sequence, in tokens", type=integer(1), metavar="N")
    add(
        "--max-num-seqs",
        "most sequences in one step (default 64 on CPU, 256 on CUDA)",
        type=integer(1),
        metavar="N",
    )
    add(
        "--max-num-batched-tokens",
        "most tokens in one step (default 512 on CPU, 8192 on CUDA)",
        type=integer(1),
        metavar="N",
    )
    add(
        "--kv-cache-memory",
        "the KV cache: bytes, or 2GiB (default 1GiB on CPU, most of what is free on CUDA)",
        type=size,
        metavar="SIZE",
    )
    add(
        "--kv-cache-dtype",
        "what keys and values are rounded to when cached; bfloat16 takes half the memory",
        choices=KV_CACHE_DTYPES,
    )
    add("--threads", "CPU threads; all usable cores if not set", type=integer(1), metavar="N")
    add("--default-deterministic", "what a request gets that does not say")
    add(
        "--fast-mode",
        "allow requests with deterministic: false, at the cost of a second copy of the weights",
        dest="allow_fast",
    )
    add("--prefix-caching", "start a prompt from pages that earlier requests have computed")
    add(
        "--speculation",
        "guess tokens that repeat earlier ones and verify several at once, to the same bits",
    )


def add_weights_flags(parser: Any) -> None:
    """Add what decides how weights are stored, which ``pull`` has too."""
    text = "a GGUF file's quantised blocks: kept and multiplied as integers, or made bfloat16"
    _add(parser, EngineConfig(), "--weights", text, choices=WEIGHTS)
    text = "round the linear layers of a Hugging Face checkpoint to this format, once"
    _add(parser, EngineConfig(), "--quantize", text, choices=QUANTIZE)


def _add(group: Any, defaults: object, flag: str, text: str, **options: Any) -> None:
    """Add the flag of one setting, with its default; one that is on or off has a ``--no-``."""
    name = options.setdefault("dest", flag.removeprefix("--").replace("-", "_"))
    default = getattr(defaults, name)
    if isinstance(default, bool):
        options["action"] = argparse.BooleanOptionalAction
    if default is not None:
        text += f" (default {f'{default:g}' if isinstance(default, float) else default})"
    group.add_argument(flag, default=default, help=text, **options)


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """Return the settings that parsed flags amount to.

    Raises:
        ConfigError: settings that contradict each other.
    """
    return EngineConfig(**{one.name: getattr(args, one.name) for one in fields(EngineConfig)})


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add every setting of ``ServerConfig``, and which solvers are served."""
    add_served_solvers(parser)
    group = parser.add_argument_group("server")

    def add(flag: str, text: str, **options: Any) -> None:
        _add(group, ServerConfig(), flag, text, **options)

    add("--host", "address to listen on")
    add("--port", "0 takes a free one", type=integer(0, 65535), metavar="N")
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
    add(
        "--share-prefix-cache",
        "let keys share cached prompts, which each can tell by the time an answer takes",
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
    add("--served-model-name", "what clients call the model", metavar="NAME")
    add("--max-queue-size", "most waiting requests; beyond them 429", type=integer(0), metavar="N")
    add(
        "--request-timeout",
        "seconds a client may take to send a request, or read nothing of an answer; 0 for no limit",
        type=seconds,
        metavar="S",
    )
    add(
        "--generation-timeout",
        "seconds from an answer's first step to its end, without its time in the queue; 0 for no "
        "limit",
        type=seconds,
        metavar="S",
    )
    add("--shutdown-timeout", "seconds running requests get to finish", type=seconds, metavar="S")
    add(
        "--exit-on-engine-death",
        "end with status 1 when the engine's process has died, so that it is restarted; else "
        "answer 503",
    )
    add("--receipt-key", "sign receipts: an Ed25519 private key in PEM", metavar="FILE")
    text = "how the model writes calls of tools; auto goes by its chat template"
    add("--tool-call-parser", text, choices=TOOL_CALL_PARSERS)
    text = "set apart the reasoning of a model that marks it so"
    add("--reasoning-parser", text, choices=REASONING_PARSERS)
    add(
        "--metrics-prefix",
        "what stands before the colon in the names of metrics: vllm for tools that read vLLM's",
        metavar="NAME",
    )
    add(
        "--access-log",
        "a line a request on stderr, without prompts and keys; probes of /health and /metrics at "
        "level debug only",
    )
    add("--log-format", "of every line on stderr", choices=FORMATS)
    add("--log-level", "the least that is logged", choices=LEVELS)


def server_config(args: argparse.Namespace) -> ServerConfig:
    """Return the server's settings.

    Raises:
        ConfigError: an API key no header can carry, a file of keys, or a key of receipts, that
            cannot be used.
    """
    given = {one.name: getattr(args, one.name) for one in fields(ServerConfig)}
    given["api_keys"] = collect_api_keys(args.api_keys, args.api_key_file)
    given["cors_origins"] = tuple(args.cors_origins)
    if args.receipt_key is not None:  # told before a model is fetched
        from detinfer.receipts.seal import load_key

        load_key(Path(args.receipt_key))
    return ServerConfig(**given)
