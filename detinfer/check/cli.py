"""``detinfer check``."""

from __future__ import annotations

import argparse
import os
import secrets

from rich.console import Console

from detinfer.check.display import print_result, progress_display
from detinfer.check.report import Report
from detinfer.check.runner import Backend, Check, Mode
from detinfer.check.target import Target, default_targets
from detinfer.errors import ConfigError
from detinfer.flags import engine_config
from detinfer.params import SamplingParams

MODES: dict[str, tuple[Mode, ...]] = {
    "deterministic": ("deterministic",),
    "fast": ("fast",),
    "both": ("deterministic", "fast"),
}


def run(args: argparse.Namespace) -> int:
    """Check what the flags say and print what was found.

    Returns:
        0 if every answer was the same, 1 if not.

    Raises:
        DetinferError: the check cannot run; the command's exit status is then 2.
    """
    report = None if args.report is None else Report(args.report)
    targets = _targets(args)
    modes = MODES[args.mode]
    seed = secrets.randbits(32) if args.seed is None else args.seed
    log, out = Console(stderr=True), Console()
    log.print(
        f"{args.runs} runs of {len(targets)} prompts in loads of up to {args.concurrency} "
        f"requests, seed {seed}",
        highlight=False,
        soft_wrap=True,
    )
    if args.url is None and not args.allow_fast and ("fast" in modes or args.fast_neighbours):
        flag = "--mode: fast runs" if "fast" in modes else "--fast-neighbours: they run"
        raise ConfigError(f"{flag} only without --no-fast-mode")
    check = Check(
        _backend(args),
        targets,
        runs=args.runs,
        modes=modes,
        seed=seed,
        fast_neighbours=args.fast_neighbours,
    )
    with progress_display(log) as show:
        for progress in check.progress():
            show(progress)
    result = check.result()
    if report is not None:
        report.write(result)
    print_result(out, result)
    return 0 if result.reproducible else 1


def _targets(args: argparse.Namespace) -> list[Target]:
    if not args.prompts:
        return default_targets(args.max_tokens)
    for number, prompt in enumerate(args.prompts, start=1):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"--prompt: number {number} is not valid UTF-8") from None
    params = SamplingParams(max_tokens=args.max_tokens)
    return [Target(prompt, params) for prompt in args.prompts]


def _backend(args: argparse.Namespace) -> Backend:
    if args.url is not None:
        from detinfer.check.server_backend import ServerBackend

        key = os.environ.get("DETINFER_API_KEY") or None
        return ServerBackend(args.url, args.concurrency, key)
    from detinfer.check.engine_backend import EngineBackend
    from detinfer.engine.engine import Engine

    return EngineBackend(Engine(engine_config(args)), args.concurrency)
