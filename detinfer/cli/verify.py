"""``detinfer verify``: whether a receipt holds, by replaying it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detinfer.api_keys import VARIABLE
from detinfer.cli.flags import engine_config
from detinfer.cli.preflight import check_start
from detinfer.errors import ConfigError, DetinferError
from detinfer.garbage import uncollected

if TYPE_CHECKING:
    from detinfer.receipts.receipt import Value
    from detinfer.receipts.verdict import Verdict

HOLDS, DIFFERS = 0, 1


def add_verify_flags(parser: argparse.ArgumentParser) -> None:
    """Add the receipt, before the engine's settings, and how to verify it."""
    parser.add_argument("receipt", metavar="RECEIPT", help="a file; - is standard input")
    parser.add_argument("--url", help="have a running server replay it instead of loading a model")
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
    if args.url is not None and args.model is not None:
        raise ConfigError("MODEL: got it beside --url, expected one of them")
    with uncollected():
        from detinfer.receipts.reading import parse, read_json
        from detinfer.receipts.seal import opened
        from detinfer.receipts.verdict import Finding
    value = read_json(_bytes(args.receipt))
    parse(opened(value))  # what is no receipt is told before a model is loaded
    verdict = _replayed(value, args) if args.url is None else _told(value, args.url)
    if args.signed_by is not None and verdict.signed_by != args.signed_by:
        message = f"by {verdict.signed_by or 'nobody'}, expected {args.signed_by}"
        verdict.findings.append(Finding("signature", message))
    if args.json:
        print(json.dumps(verdict.to_value(), indent=2))
    else:
        _print(verdict)
    return HOLDS if verdict.match else DIFFERS


def _replayed(value: Value, args: argparse.Namespace) -> Verdict:
    """Return the verdict of an engine in this process."""
    config = engine_config(args)
    check_start(config)
    with uncollected():
        from detinfer.engine.engine import Engine
        from detinfer.receipts.replay import verify
    return verify(value, Engine(config))


def _told(value: Value, url: str) -> Verdict:
    """Return the verdict of a server."""
    from detinfer.check.client import Client
    from detinfer.receipts.verdict import Finding, Verdict
    from detinfer.server.limits import MAX_BODY_BYTES

    if (size := len(json.dumps(value))) > MAX_BODY_BYTES:
        raise ConfigError(
            f"RECEIPT: got {size} bytes, a server takes at most {MAX_BODY_BYTES}; verify it "
            "without --url"
        )
    told = Client(url, os.environ.get(VARIABLE) or None).post("/verify", value)
    try:
        findings = [Finding(**finding) for finding in told["findings"]]
        seconds = None if told["seconds"] is None else float(told["seconds"])
        verdict = Verdict(findings, int(told["tokens"]), told["signed_by"], seconds)
        if verdict.match is told["match"]:
            return verdict
    except (KeyError, TypeError, ValueError):
        pass
    raise DetinferError(f"{url}: not a detinfer server (/verify told no verdict)")


def _bytes(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"RECEIPT: {name}: {error.strerror}") from None


def _print(verdict: Verdict) -> None:
    for finding in verdict.findings:
        where = f"token {finding.token}" if finding.token else finding.part
        print(f"{where}: {finding.message}")
    signed = f", signed by {verdict.signed_by}" if verdict.signed_by else ", not signed"
    if verdict.match:
        took = f" in {verdict.seconds:.2f} s" if verdict.seconds else ""
        print(f"holds: {verdict.tokens} tokens, each with its checksum{took}{signed}")
    else:
        print(f"does not hold: {verdict.tokens} tokens verified{signed}")
