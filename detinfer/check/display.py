"""How a check looks in a terminal, and in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from detinfer.check.answer import Answer, Divergence
from detinfer.check.golden import Moved
from detinfer.check.mode_result import ModeResult
from detinfer.check.result import CheckResult
from detinfer.check.runner import Progress as CheckProgress
from detinfer.check.words import answer_line, shrunk_lines

_PLAIN_LINES = 10  # a mode, where there is no terminal to draw a bar on


class Show(Protocol):
    """Shows how far a check is."""

    def __call__(self, progress: CheckProgress) -> None:
        """Hear of every load."""


@contextmanager
def progress_display(console: Console) -> Iterator[Show]:
    """Return a bar on a terminal; elsewhere a line now and then."""
    if not console.is_terminal:
        yield _plain_lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        tasks = {}

        def show(progress: CheckProgress) -> None:
            if progress.mode not in tasks:
                tasks[progress.mode] = bar.add_task(progress.mode, total=progress.total, state="")
            bar.update(tasks[progress.mode], completed=progress.runs, state=_state(progress))

        yield show


def _plain_lines(console: Console) -> Show:
    shown: dict[str, int] = {}

    def show(progress: CheckProgress) -> None:
        part = progress.runs * _PLAIN_LINES // progress.total
        if part > shown.get(progress.mode, 0):
            shown[progress.mode] = part
            console.print(f"{progress.mode}: {_state(progress)}", highlight=False, soft_wrap=True)

    return show


def _state(progress: CheckProgress) -> str:
    rate = progress.runs / max(progress.seconds, 1e-9)
    digests = f"{progress.unique_digests} digest{'s' if progress.unique_digests > 1 else ''}"
    differ = f", {progress.divergent_runs} differ" if progress.divergent_runs else ""
    return (
        f"{progress.runs}/{progress.total} runs, {rate:.1f}/s, {digests} a {progress.noun}{differ}"
    )


def print_result(console: Console, result: CheckResult) -> None:
    """Print a table of every prompt for each mode, the first divergences, and the verdict."""
    for mode in result.by_mode.values():
        console.print(_table(mode, console.width, result.noun))
        if mode.first_divergence is not None:
            for line in _divergence_lines(mode.first_divergence, result):
                _line(console, line)
        if mode.engine:
            counts = (f"{n:,} {name.replace('_', ' ')}" for name, n in mode.engine.items())
            _line(console, f"the engine meanwhile: {', '.join(counts)}")
        _line(console, "")
    console.print(_families_table(result))
    _line(console, "")
    if result.shrunk is not None:
        for line in shrunk_lines(result.shrunk):
            _line(console, line)
    for line in result.told():
        _line(console, line)
    _line(console, verdict(result))


def _table(mode: ModeResult, width: int, noun: str) -> Table:
    table = Table(title=mode.mode, title_justify="left", box=None, padding=(0, 2, 0, 0))
    counts = ("runs", "unique outputs", "unique digests", "first divergence")
    room = width - sum(len(name) + 2 for name in counts) - 2
    # Only the target may be cut.
    table.add_column(noun, no_wrap=True, overflow="ellipsis", max_width=max(12, room))
    for name in counts:
        table.add_column(name, justify="right", no_wrap=True)
    for prompt in mode.prompts:
        first = prompt.first_divergence
        color = "red" if prompt.divergent_runs else "green"
        table.add_row(
            escape(prompt.target.label),
            str(len(prompt.runs)),
            f"[{color}]{prompt.unique_outputs}[/]",
            f"[{color}]{prompt.unique_digests}[/]",
            "none" if first is None else f"run {first.run + 1}",
        )
    return table


def _families_table(result: CheckResult) -> Table:
    """Return what the loads changed, and what came of it."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("family", no_wrap=True)
    for mode in result.by_mode:
        above = f"{mode}\n" if len(result.by_mode) > 1 else ""
        for name in (f"{above}runs", "unique\ndigests" if above else "unique digests"):
            table.add_column(name, justify="right", vertical="bottom")
    counts = [mode.by_family(result.families) for mode in result.by_mode.values()]
    for family in result.families:
        if any(family in one for one in counts):
            cells = []
            for one in counts:
                found = one.get(family)
                color = "red" if found and found.divergent_runs else "green"
                cells.append(f"{found.runs:,}" if found else "0")
                cells.append(f"[{color}]{found.unique_digests}[/]" if found else "-")
            alias = "" if family.words == family.name else f" ({family.name})"
            table.add_row(f"{family.words}{alias}", *cells)
    return table


def verdict(result: CheckResult) -> str:
    """Return the result in one line."""
    others = [mode for mode in result.by_mode.values() if mode is not result.judged]
    beside = "".join(
        f"; {m.mode}: up to {m.unique_digests} digests a {result.noun}" for m in others
    )
    if result.reproducible:
        found = f"reproducible: 1 unique digest for each of {len(result.prompts)} {result.noun}s"
    else:
        most = result.judged.unique_answers
        found = f"not reproducible: up to {most} distinct answers to one {result.noun}"
    return (
        f"{found}, {result.runs} {result.judged.mode} runs under {result.loads} loads, "
        f"{result.seconds:.0f} s, seed {result.seed}, {result.fingerprint}{beside}"
    )


def print_answers(console: Console, alone: Answer, got: Answer) -> None:
    """Print two answers to one prompt, and whether they differ."""
    position = None if alone == got else alone.first_difference(got)
    _line(console, f"alone:       {answer_line(alone, position)}")
    _line(console, f"in the load: {answer_line(got, position)}")
    _line(console, "equal" if alone == got else f"differs: {alone.difference(got)}")


def print_moved(console: Console, moved: Moved, result: CheckResult, path: str) -> None:
    """Print which digests are not those of a golden file, and what else has changed."""
    for prompt, digest in moved.prompts:
        _line(
            console,
            f"moved: {result.noun} {prompt.number + 1}, {prompt.target.label}: digest "
            f"{digest[:16]} in {path}, {prompt.expected.digest[:16]} now",
        )
    for name, (old, new) in moved.parts.items():
        _line(console, f"fingerprint part {name}: {old} in {path}, {new} now")
    count = len(result.prompts)
    _line(console, f"golden: {count - len(moved.prompts)} of {count} digests are those of {path}")


def _divergence_lines(first: Divergence, result: CheckResult) -> Iterator[str]:
    load = first.load
    yield (
        f"first {first.mode} divergence: {result.noun} {first.prompt + 1}, run {first.run + 1}, in "
        f"load {load.number} (drawn again by --seed {result.seed} and otherwise the same command)"
    )
    neighbours = len(load.rows) - load.targets
    yield (
        f"  load: {len(load.rows)} requests, {load.targets} of them runs and {neighbours} "
        f"neighbours; this one was number {first.row + 1}, after {load.rows[first.row].arrival} "
        "steps"
    )
    if load.placement is not None:
        yield f"  {load.placement.told}"
    yield f"  {first.what}"
    yield f"  alone:       {answer_line(first.expected, first.position)}"
    yield f"  in the load: {answer_line(first.got, first.position)}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
