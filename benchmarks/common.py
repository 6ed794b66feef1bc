"""What the benchmarks share: interleaved repeats, medians, results that name their source."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from detinfer.config import WEIGHTS, EngineConfig
from detinfer.engine.engine import Engine
from detinfer.machine import usable_cores
from detinfer.params import SamplingParams

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "numba", "llvmlite", "numpy")


def interleaved(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call every measure in turn, ``repeats`` times over, after one unrecorded round each.

    Interleaving lets what disturbs the machine disturb all of them alike.
    """
    for measure in measures.values():
        measure()
    results: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            results[name].append(measure())
    return results


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Seconds since entry; frozen at exit."""
    start = time.perf_counter()
    end: list[float] = []
    yield lambda: (end[0] if end else time.perf_counter()) - start
    end.append(time.perf_counter())


class EngineDriver:
    """An engine driven step by step, so that prefill and decode are timed apart."""

    def __init__(self, **settings: Any) -> None:
        # Every round does all the work: a prompt would come from the cache, a token from a draft.
        plain = {"prefix_caching": False, "speculation": False}
        self.engine = Engine(EngineConfig(**(plain | settings)))
        self._count = 0

    def prefill(self, prompt: list[int], deterministic: bool) -> float:
        """Seconds from adding a prompt to its first token."""
        self._add(prompt, 1, deterministic)
        with stopwatch() as seconds:
            while self.engine.has_unfinished():
                self.engine.step()
        return seconds()

    def decode(self, prompts: list[list[int]], tokens: int, deterministic: bool) -> float:
        """Seconds a token takes each of ``prompts`` together, once all are prefilled."""
        for prompt in prompts:
            self._add(prompt, tokens + 1, deterministic)
        while self.engine.step():
            if all(request.decoding for request in self.engine.scheduler.running) and not (
                self.engine.scheduler.waiting
            ):
                break
        steps = 0
        with stopwatch() as seconds:
            while self.engine.has_unfinished():
                self.engine.step()
                steps += 1
        return seconds() / steps

    def _add(self, prompt: list[int], tokens: int, deterministic: bool) -> None:
        self._count += 1
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, deterministic=deterministic)
        self.engine.add_request(str(self._count), prompt, params)


def prompt_ids(length: int, seed: int = 0) -> list[int]:
    """Return a fixed prompt of ordinary token ids."""
    return [(7919 * (i + 1) + 104729 * seed) % 40_000 + 100 for i in range(length)]


def arguments(description: str, repeats: int) -> argparse.ArgumentParser:
    """Return the flags every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", nargs="?", help="folder, .gguf file or hub id")
    parser.add_argument("--weights", choices=WEIGHTS, default="auto", help="as serve has them")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds")
    parser.add_argument("--json", type=Path, help="write results here")
    return parser


def machine() -> dict[str, Any]:
    """Return where and with what the figures were measured."""
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": cpu,
        "cores": usable_cores(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": commit,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def report(
    title: str, rows: list[dict[str, Any]], extra: dict[str, Any], path: Path | None
) -> dict[str, Any]:
    """Print a table, write the same rows as JSON, and return what is written."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right" if rows else "left")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    Console().print(table)
    result = {"benchmark": title, "machine": machine(), **extra, "rows": rows}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    return result
