"""``detinfer verify``: whether a receipt holds, by replaying it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from detinfer.cli.flags import engine_config
from detinfer.cli.preflight import check_start
from detinfer.errors import ConfigError
from detinfer.garbage import uncollected

HOLDS, DIFFERS = 0, 1


def add_verify_flags(parser: argparse.ArgumentParser) -> None:
    """Add the receipt, before the engine's settings, and how to verify it."""
    parser.add_argument("receipt", metavar="RECEIPT", help="a file; - is standard input")
    parser.add_argument(
        "--signed-by",
        metavar="KEY",
        help="the public key, in base64, whose signature it must have",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Verify a receipt and print the verdict.

    Returns:
        The exit status: 0 it holds, 1 it does not.

    Raises:
        DetinferError: it is no receipt, or cannot be replayed.
    """
    with uncollected():
        from detinfer.receipts.reading import parse, read_json
        from detinfer.receipts.seal import opened
    value = read_json(_bytes(args.receipt))
    parse(opened(value))  # what is no receipt is told before a model is loaded
    config = engine_config(args)
    check_start(config)
    with uncollected():
        from detinfer.engine.engine import Engine
        from detinfer.receipts.replay import verify
    verdict = verify(value, Engine(config)).to_value()
    if args.signed_by is not None and verdict["signed_by"] != args.signed_by:
        verdict["match"] = False
        verdict["findings"].append(
            {
                "part": "signature",
                "message": f"by {verdict['signed_by'] or 'nobody'}, expected {args.signed_by}",
            }
        )
    if args.json:
        print(json.dumps(verdict, indent=2))
    else:
        _print(verdict)
    return HOLDS if verdict["match"] else DIFFERS


def _bytes(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"RECEIPT: {name}: {error.strerror}") from None


def _print(verdict: dict[str, Any]) -> None:
    for finding in verdict["findings"]:
        where = f"token {finding['token']}" if finding.get("token") else finding["part"]
        print(f"{where}: {finding['message']}")
    signed = f", signed by {verdict['signed_by']}" if verdict["signed_by"] else ", not signed"
    if verdict["match"]:
        took = f" in {verdict['seconds']:.2f} s" if verdict["seconds"] else ""
        print(f"holds: {verdict['tokens']} tokens, each with its checksum{took}{signed}")
    else:
        print(f"does not hold: {verdict['tokens']} tokens verified{signed}")
