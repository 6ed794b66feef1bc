"""``detinfer check``."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from detinfer.check.control import control
from detinfer.check.display import print_answers, print_moved, print_result, progress_display
from detinfer.check.families import NAMES, named
from detinfer.check.golden import Golden, render_golden
from detinfer.check.margins import add_margins
from detinfer.check.report import Report
from detinfer.check.repro import Repro
from detinfer.check.result import CheckResult
from detinfer.check.runner import Check, Mode
from detinfer.check.subject import Subject
from detinfer.check.target import LENGTHS, Target, default_targets
from detinfer.cli.flags import engine_config
from detinfer.errors import ConfigError
from detinfer.output_file import OutputFile
from detinfer.params import SamplingParams

if TYPE_CHECKING:
    from detinfer.check.solver_server_subject import SolverServerSubject
    from detinfer.check.solver_subject import SolverSubject

MODES: dict[str, tuple[Mode, ...]] = {
    "deterministic": ("deterministic",),
    "fast": ("fast",),
    "both": ("deterministic", "fast"),
}


def run(args: argparse.Namespace) -> int:
    """Check what the flags say and print what was found.

    Returns:
        0 if every answer was the same, and as the golden file has it; 1 if not.

    Raises:
        DetinferError: the check cannot run; the command's exit status is then 2.
    """
    if args.repro is not None:
        return _repeat(args, Repro(args.repro))
    report = None if args.report is None else Report(args.report)
    _families(args)  # before anything loads
    golden = Golden(args.golden) if args.assert_golden else None
    kept = OutputFile("--golden", args.golden) if args.update else None
    modes = MODES[args.mode]
    check = _solver_check(args, modes) if args.solver else _check(args, modes)
    parts = check.subject.parts
    if golden is not None:
        golden.accept(check.targets, parts)
    result = _run(check, report)
    same = result.reproducible
    if kept is not None and same:
        kept.write(render_golden(result, parts))
    elif kept is not None:
        Console().print(f"golden: {kept.path} not written, there is no one answer", soft_wrap=True)
    if golden is not None:
        moved = golden.compare(result, parts)
        print_moved(Console(), moved, result, golden.path)
        same = same and not moved.prompts
    return 0 if same else 1


def _repeat(args: argparse.Namespace, repro: Repro) -> int:
    """Play a repro file again."""
    if (repro.noun == "puzzle") != (args.solver is not None):
        raise ConfigError(f"--repro: {args.repro} is of a {repro.noun}, expected "
                          f"{'--solver' if args.solver is None else 'no --solver'}")  # fmt: skip
    subject = _solver_subject(args, ()) if args.solver is not None else _subject(args)
    alone, got = repro.play(subject)
    print_answers(Console(), alone, got)
    return 0 if alone == got else 1


def _run(check: Check, report: Report | None) -> CheckResult:
    log, out = Console(stderr=True), Console()
    for line in _beginning(check):
        log.print(line, highlight=False, soft_wrap=True)
    with progress_display(log) as show:
        for progress in check.progress():
            show(progress)
    result = check.result()
    if not result.reproducible:
        log.print("making the load of the first divergence small", highlight=False)
        result = check.shrunk(result)
    result = dataclasses.replace(result, control=control(check))
    if report is not None:
        add_margins(check)
        report.write(result)
        if result.shrunk is not None:
            again = f"detinfer check --repro {report.write_repro(result)}"
            log.print(f"played again by {again}", highlight=False, soft_wrap=True)
    print_result(out, result)
    return result


def _check(args: argparse.Namespace, modes: tuple[Mode, ...]) -> Check:
    given = _given_targets(args)
    if args.url is None and not args.allow_fast and ("fast" in modes or args.fast_neighbours):
        flag = "--mode: fast runs" if "fast" in modes else "--fast-neighbours: they run"
        raise ConfigError(f"{flag} only without --no-fast-mode")
    if args.url is not None:
        return _server_check(args, modes, given)
    subject = _subject(args)
    return Check(
        subject,
        given or default_targets(subject.bounds, args.max_tokens),
        runs=args.runs,
        modes=modes,
        seed=args.seed,
        fast_neighbours=args.fast_neighbours,
        families=_families(args),
    )


def _server_check(args: argparse.Namespace, modes: tuple[Mode, ...], given: list[Target]) -> Check:
    from detinfer.check.ladder import LadderCheck, server_subject
    from detinfer.check.openai_subject import OpenAISubject

    subject = server_subject(args.url, args.concurrency, _key(), args.timeout)
    if isinstance(subject, OpenAISubject):
        targets = subject.targets(args.max_tokens, args.prompts)
    else:
        targets = given or default_targets(subject.bounds, args.max_tokens)
    return LadderCheck(
        subject,
        targets,
        runs=args.runs,
        modes=modes,
        seed=args.seed,
        fast_neighbours=args.fast_neighbours,
        families=_families(args),
    )


def _families(args: argparse.Namespace) -> list[str]:
    """Return the names of --families."""
    if args.families is None:
        return list(NAMES)
    names = [name.strip() for name in args.families.split(",")]
    try:
        named(names)
    except ConfigError as error:
        raise ConfigError(f"--{error}") from None
    return names


def _solver_check(args: argparse.Namespace, modes: tuple[Mode, ...]) -> Check:
    from detinfer.check.solver_check import SolverCheck, given_targets

    subject = _served_solver(args) if args.url is not None else _solver_subject(args, modes)
    targets = given_targets(args.prompts) if args.prompts else subject.targets()
    return SolverCheck(
        subject,
        targets,
        runs=args.runs,
        modes=modes,
        seed=args.seed,
        families=_families(args),
    )


def _served_solver(args: argparse.Namespace) -> SolverServerSubject:
    from detinfer.check.solver_server_subject import SolverServerSubject

    return SolverServerSubject(args.url, args.solver, args.concurrency, _key(), args.timeout)


def _key() -> str | None:
    """Return the key that servers are asked with."""
    return os.environ.get("DETINFER_API_KEY") or None


def _solver_subject(args: argparse.Namespace, modes: tuple[Mode, ...]) -> SolverSubject:
    from detinfer.check.solver_subject import SolverSubject

    fast = "fast" in modes or args.allow_fast  # the control's, too
    return SolverSubject(args.solver, args.concurrency, args.threads, fast)


def _beginning(check: Check) -> Iterator[str]:
    """Yield what is about to be compared, and what not."""
    few = [f"{x.name}: {x.runs_of(check.runs)}" for x in check.targets if x.share < 1]
    but = f" ({', '.join(few)})" if few else ""
    yield (
        f"{check.runs} runs of {len(check.targets)} {check.noun}s{but} in loads of up to "
        f"{check.max_rows} requests, seed {check.seed}"
    )
    for target in check.targets:
        whole = LENGTHS.get(target.name, 0)
        if len(target.prompt) < whole:
            yield (
                f"{target.name}: {len(target.prompt)} tokens, not {whole:,}: no more fit into the "
                "model's length and the KV cache (--max-model-len, --kv-cache-memory)"
            )


def _given_targets(args: argparse.Namespace) -> list[Target]:
    for number, prompt in enumerate(args.prompts or (), start=1):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"--prompt: number {number} is not valid UTF-8") from None
    params = SamplingParams(max_tokens=args.max_tokens)
    return [Target(prompt, params) for prompt in args.prompts or ()]


def _subject(args: argparse.Namespace) -> Subject:
    from detinfer.check.engine_subject import EngineSubject
    from detinfer.engine.engine import Engine

    config = engine_config(args)
    return EngineSubject(Engine(config), args.concurrency, lambda: Engine(config))
