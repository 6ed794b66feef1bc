"""Flags of one command each, beside the engine's settings."""

from __future__ import annotations

import argparse

from detinfer.cli.flags import integer
from detinfer.cli.solver_flags import add_checked_solver
from detinfer.params import MAX_TOKENS_LIMIT, SamplingParams


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """Add what ``detinfer generate`` takes."""
    parser.add_argument("-p", "--prompt", required=True, metavar="TEXT", help="what to answer")
    parser.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="answer as the model's chat template has it, or continue the raw text (default: chat "
        "in a terminal, if the model has a template)",
    )
    _add_sampling_flags(parser, SamplingParams().max_tokens)
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    parser.add_argument(
        "--receipt", metavar="FILE", help="write a receipt, which detinfer verify replays"
    )
    parser.add_argument(
        "--receipt-key", metavar="FILE", help="sign it: an Ed25519 private key in PEM"
    )


def add_chat_flags(parser: argparse.ArgumentParser) -> None:
    """Add what ``detinfer chat`` takes."""
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    _add_sampling_flags(parser, 1024)


def _add_sampling_flags(parser: argparse.ArgumentParser, max_tokens: int | None) -> None:
    parser.add_argument(
        "--max-tokens",
        type=integer(1, MAX_TOKENS_LIMIT),
        default=max_tokens,
        metavar="N",
        help=f"most tokens to generate (default {max_tokens})",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default 0)"
    )
    parser.add_argument("--seed", type=integer(0, (1 << 64) - 1), metavar="N", help="for sampling")


def add_check_flags(parser: argparse.ArgumentParser) -> None:
    """Add what ``detinfer check`` takes."""
    add_checked_solver(parser)
    parser.add_argument(
        "--url", help="check a running server instead: ours, or any OpenAI-compatible one"
    )
    parser.add_argument(
        "--timeout",
        type=integer(1, 86_400),
        default=300,
        metavar="SECONDS",
        help="of --url: without a byte from the server (default 300)",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A.json", "B.json"),
        help="compare two reports, of two machines or versions, and check nothing",
    )
    parser.add_argument(
        "--runs",
        type=integer(1),
        default=1000,
        metavar="N",
        help="answers of each prompt (default 1000)",
    )
    parser.add_argument(
        "-p",
        "--prompt",
        action="append",
        dest="prompts",
        metavar="TEXT",
        help="may be repeated; built-in ones if not given",
    )
    parser.add_argument(
        "--max-tokens",
        type=integer(1, MAX_TOKENS_LIMIT),
        default=32,
        metavar="N",
        help="default 32",
    )
    parser.add_argument(
        "--mode", choices=("deterministic", "fast", "both"), default="deterministic"
    )
    parser.add_argument(
        "--concurrency", type=integer(1), default=32, metavar="N", help="largest load (default 32)"
    )
    parser.add_argument(
        "--fast-neighbours",
        type=integer(0, 1024),
        default=0,
        metavar="N",
        help="requests with deterministic: false beside every load (default 0)",
    )
    parser.add_argument(
        "--families",
        metavar="NAME,…",
        help="what loads may change, as batch,slot,cache (default all; a wrong name lists them)",
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write a report, .html, .json or JUnit's .xml"
    )
    parser.add_argument(
        "--repro",
        metavar="FILE",
        help="play again what a check left beside its report where it found a difference",
    )
    parser.add_argument(
        "--golden",
        metavar="FILE",
        help="digests that were kept: --update writes them, --assert fails where one has moved",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--update", action="store_true", help="write the file of --golden")
    how.add_argument(
        "--assert",
        dest="assert_golden",
        action="store_true",
        help="compare with the file of --golden",
    )
    parser.add_argument(
        "--seed", type=integer(0), metavar="N", help="draws the loads; a fresh one if not given"
    )
