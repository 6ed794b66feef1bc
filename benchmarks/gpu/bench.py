"""Sections of the suite: a time budget, results written as they come, what is skipped and why."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.sizes import FULL, SMOKE, Sizes

ROOT = Path(__file__).resolve().parents[2]
Result = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """One part of the suite.

    Attributes:
        seconds: it may take; it is not started with less left, and stops itself by ``Bench.left``.
    """

    name: str
    seconds: float
    run: Callable[[Bench], Result]


SECTIONS: dict[str, Section] = {}

# What must be known first comes first; sections over one model follow one another.
ORDER = (
    "device",
    "compile",
    "bits.mma",
    "bits.linear",
    "bits.small",
    "bits.attention",
    "bits.cublas",
    "perf.linear",
    "perf.attention",
    "perf.small",
    "engine.invariance",
    "slowdown.decode",
    "slowdown.drafts",
    "slowdown.sequences",
    "slowdown.throughput",
    "slowdown.other",
)
ALWAYS = ("device", "compile")  # the others refer to them


def section(name: str, *, seconds: float) -> Callable[[Callable[[Bench], Result]], Any]:
    """Register a function as a section."""

    def register(function: Callable[[Bench], Result]) -> Callable[[Bench], Result]:
        assert name in ORDER, name
        SECTIONS[name] = Section(name, seconds, function)
        return function

    return register


@dataclass
class Bench:
    """What a section works with.

    Attributes:
        device: to measure; the CPU in a smoke run.
        smoke: whether this run only proves the suite's own code.
        results: of the sections before.
        shared: what sections of one group keep for one another; see ``release``.
    """

    device: torch.device
    smoke: bool
    results: dict[str, Result] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    deadline: float = float("inf")

    @property
    def sizes(self) -> Sizes:
        """The shapes of this run."""
        return SMOKE if self.smoke else FULL

    def left(self) -> float:
        """Seconds the running section has left."""
        return self.deadline - time.monotonic()

    def generator(self, seed: int = 0) -> torch.Generator:
        """Return a generator on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def ceiling(self, name: str) -> float | None:
        """Return a measured ceiling of the device, if its section ran."""
        value = self.results.get("device", {}).get(name)
        return float(value) if value else None

    def release(self) -> None:
        """Drop what is shared and return the device's memory."""
        self.shared.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class DeviceLostError(Exception):
    """No launch succeeds any more in this process."""


def check_device(device: torch.device) -> None:
    """Raise ``DeviceLostError`` if an earlier launch left the device's context broken."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceLostError(str(error)) from None


class Suite:
    """Runs sections and keeps their results in a file.

    A section that a run of the same sources finished is not run again.

    Args:
        path: of the results.
        identity: commit, sources and settings; results of another one are dropped.
        about: further facts for the file.
        keep_errors: whether a section that failed before is left so too.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        about: dict[str, Any],
        keep_errors: bool = False,
    ) -> None:
        self.path = path
        self._kept = ("done", "error") if keep_errors else ("done",)
        self.document: dict[str, Any] = {**about, "identity": identity, "sections": {}}
        if path.exists():
            before = json.loads(path.read_text())
            if before.get("identity") == identity:
                self.document["sections"] = before["sections"]

    @property
    def sections(self) -> dict[str, Any]:
        """Status, seconds and result (or reason) of every section so far."""
        sections: dict[str, Any] = self.document["sections"]
        return sections

    def results(self) -> dict[str, Result]:
        """Of the sections that are done."""
        return {n: one["result"] for n, one in self.sections.items() if one["status"] == "done"}

    def run(
        self, bench: Bench, chosen: Sequence[Section], budget: float, say: Callable[[str], None]
    ) -> None:
        """Run the chosen sections within ``budget`` seconds.

        Raises:
            DeviceLostError: a section broke the device's context; the others need a new process.
        """
        end = time.monotonic() + budget
        for one in chosen:
            before = self.sections.get(one.name, {})
            if before.get("status") in self._kept:
                say(f"{one.name}: kept from before")
                bench.results |= {one.name: before["result"]} if "result" in before else {}
                continue
            left = end - time.monotonic()
            if left < one.seconds:
                reason = f"needs up to {one.seconds:.0f} s, {max(left, 0):.0f} s were left"
                entry: dict[str, Any] = {"status": "skipped", "reason": reason}
            else:
                entry = _attempt(one, bench)
            self.sections[one.name] = entry
            if entry["status"] == "done":
                bench.results[one.name] = entry["result"]
            self.write()
            say(f"{one.name}: {entry['status']} {entry.get('seconds', '')} {_last(entry)}".rstrip())
            if entry["status"] == "error":
                bench.shared.clear()
                check_device(bench.device)
        bench.release()

    def write(self) -> None:
        """Replace the file at once, so that a reader never sees half of it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.document, indent=1, allow_nan=False) + "\n")
        os.replace(part, self.path)


def _attempt(one: Section, bench: Bench) -> dict[str, Any]:
    start = time.monotonic()
    bench.deadline = start + one.seconds
    try:
        result = one.run(bench)
        json.dumps(result, allow_nan=False)
        entry: dict[str, Any] = {"status": "done", "result": result}
    except Exception:
        entry = {"status": "error", "reason": traceback.format_exc()[-3000:]}
    entry["seconds"] = round(time.monotonic() - start, 1)
    return entry


def _last(entry: dict[str, Any]) -> str:
    """Return the last line of a reason."""
    return str(entry.get("reason", "")).strip().rpartition("\n")[2]


def choose(only: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[Section]:
    """Sections named in full, by a prefix of their dotted name, or by a group's letter.

    Raises:
        ValueError: a name that names none.
    """
    wanted = set(ALWAYS if only else SECTIONS)
    for word in only:
        prefixes = groups.get(word, (word,))
        found = {
            name
            for name in SECTIONS
            if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
        }
        if not found:
            known = ", ".join((*groups, *SECTIONS))
            raise ValueError(f"--only: got {word!r}, expected some of {known}")
        wanted |= found
    return [SECTIONS[name] for name in ORDER if name in wanted and name in SECTIONS]


def sources_digest() -> str:
    """Of all that results come from: a commit alone does not tell of changes on top of it."""
    digest = hashlib.sha256()
    for folder in ("detinfer", "kernels", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
