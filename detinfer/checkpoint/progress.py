"""Progress on stderr: a bar on a terminal, a line a phase elsewhere, nothing when not wanted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Report = Callable[[str, int, int], None]
"""``report(phase, done, total)``, in bytes; the phase is what the bar is labelled with."""


def silent(phase: str, done: int, total: int) -> None:
    """Report nothing."""


@contextlib.contextmanager
def progress_bar(wanted: bool) -> Iterator[Report]:
    """Show what is reported inside the block, if ``wanted``."""
    if not wanted:
        yield silent
    elif sys.stderr.isatty():
        with _rich_bar() as report:
            yield report
    else:
        yield _lines()


@contextlib.contextmanager
def _rich_bar() -> Iterator[Report]:
    # Imported here: the engine must be importable where rich is not installed.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)

        yield report


def _lines() -> Report:
    seen: set[str] = set()

    def report(phase: str, done: int, total: int) -> None:
        if phase not in seen:
            seen.add(phase)
            print(f"{phase} ({total / 1e6:.0f} MB)", file=sys.stderr, flush=True)

    return report
