"""The audit in a terminal, in a log, and as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from detinfer.compile_audit.audit import NVIDIA, Result, audit, case_modules
from detinfer.compile_audit.source_lint import lint_file
from detinfer.compile_audit.tasks import AMD, Checked, Finding
from detinfer.machine import usable_cores

_PLAIN_LINES = 10  # where there is no terminal to draw a bar on
_LOG_WIDTH = 120
_KERNELS = Path(__file__).parent.parent / "kernels" / "triton"


def run(*, full: bool, as_json: bool) -> int:
    """Audit the project's kernels and print what was found.

    Returns:
        0 if every rule holds, 1 if not.

    Raises:
        ConfigError: nothing can be compiled on this machine; the exit status is then 2.
    """
    start = time.perf_counter()
    with _progress(Console(stderr=True)) as progress:
        architectures = (*NVIDIA, AMD) if full else NVIDIA
        result = audit(case_modules(), architectures, usable_cores(), full=full, progress=progress)
    findings = (*lint_kernels(), *result.findings)
    seconds = time.perf_counter() - start
    if as_json:
        print(to_json(result, findings, seconds))
    else:
        width = None if sys.stdout.isatty() else _LOG_WIDTH
        print_report(Console(highlight=False, width=width), result, findings, seconds)
    return 1 if findings else 0


def lint_kernels() -> Iterator[Finding]:
    """Yield findings in the source of the project's kernels."""
    for path in sorted(_KERNELS.glob("*.py")):
        for line, message in lint_file(path):
            yield Finding("source", "", path.stem, f"line {line}", message)


def to_json(result: Result, findings: tuple[Finding, ...], seconds: float) -> str:
    """Return the whole audit for a program to read."""
    cases = [asdict(one) for one in result.checked]
    for case in cases:
        del case["findings"]
    answer = {
        "ok": not findings,
        "triton": result.triton,
        "compilations": result.compilations,
        "seconds": round(seconds, 1),
        "notes": result.notes,
        "findings": [asdict(one) for one in findings],
        "cases": cases,
    }
    return json.dumps(answer, indent=2, ensure_ascii=False)


def print_report(
    console: Console, result: Result, findings: tuple[Finding, ...], seconds: float
) -> None:
    """Print a row for each architecture and kernel, then every finding in a line."""
    groups: dict[tuple[str, str], list[Checked]] = defaultdict(list)
    for one in result.checked:
        groups[one.arch, one.kernel].append(one)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "arch", "kernel", "mma"):
        table.add_column(name)
    for name in ("cases", "registers", "shared", "findings"):
        table.add_column(name, justify="right")
    for (arch, kernel), cases in groups.items():
        wrong = sum(len(case.findings) for case in cases)
        table.add_row(
            "[red]✗[/]" if wrong else "[green]✓[/]",
            arch,
            kernel,
            ", ".join(sorted({case.mma for case in cases} - {"none", ""})),
            str(len(cases)),
            str(max(case.registers for case in cases)),
            str(max(case.shared for case in cases)),
            str(wrong),
        )
    console.print(table)
    for finding in findings:
        place = " ".join(filter(None, (finding.arch, finding.module.rpartition(".")[2])))
        where = ", ".join(filter(None, (place, finding.case)))
        text = f"[red]{finding.rule}[/]: {escape(where)}: {escape(finding.message)}"
        console.print(text, soft_wrap=True)
    for note in result.notes:
        console.print(escape(note), soft_wrap=True)
    console.print(
        f"{len(result.checked)} cases, {result.compilations} compilations by Triton "
        f"{result.triton} in {seconds:.0f} s: {len(findings) or 'no'} findings",
        soft_wrap=True,
    )


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Return a bar on a terminal; elsewhere a line now and then."""
    if not console.is_terminal:
        yield _plain_lines(console)
        return
    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_lines(console: Console) -> Callable[[int, int], None]:
    shown = 0

    def show(done: int, total: int) -> None:
        nonlocal shown
        part = done * _PLAIN_LINES // total if total else 0
        if part > shown:
            shown = part
            console.print(f"compiled {done} of {total}", highlight=False, soft_wrap=True)

    return show
