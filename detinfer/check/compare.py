"""Two reports side by side, of two machines or of two versions: what differs between them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from detinfer.check.bounded import read_bounded
from detinfer.check.result import FORM
from detinfer.errors import ConfigError

MAX_BYTES = 1 << 30


class SavedReport:
    """What a JSON report says of its prompts' answers.

    Args:
        path: the file.

    Raises:
        ConfigError: there is none, or it is no report, or of another form.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        data = read_bounded(path, MAX_BYTES, self._wrong)
        try:
            told = json.loads(data)
            form = str(told.get("form"))
            if form == FORM:
                self._read(told)
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            raise self._wrong("not a report of detinfer check --report FILE.json") from None
        if form != FORM:
            raise self._wrong(f"form {form:.40}, expected {FORM}")

    def _read(self, told: dict[str, Any]) -> None:
        self.version, self.judged = str(told["version"]), str(told["judged_on"])
        self.parts = {
            str(name): str(value)
            for name, value in (
                *told["fingerprint"].items(),
                ("system_fingerprint", told["system_fingerprint"]),
                ("version", told["version"]),
            )
        }
        prompts = told["by_mode"][self.judged]["prompts"]
        self.answers: dict[str, tuple[str, str, str]] = {}
        for one in prompts:
            key = json.dumps([one["prompt"], one["params"]], sort_keys=True)
            answer = one["expected"]
            label = one["name"] or str(one["prompt"])[:40]
            self.answers[key] = (label, str(answer["digest"]), str(answer["text"]))

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"--compare: {self.path}: {what}")


class Comparison:
    """What differs between two reports.

    Raises:
        ConfigError: one is no report, or they are of other prompts.
    """

    def __init__(self, one: str, other: str) -> None:
        self._one, self._other = SavedReport(one), SavedReport(other)
        if self._one.judged != self._other.judged:
            raise ConfigError(
                f"--compare: {one} is of {self._one.judged} runs, {other} of {self._other.judged}"
            )
        for ours, theirs in ((self._one, self._other), (self._other, self._one)):
            for key, (label, _, _) in ours.answers.items():
                if key not in theirs.answers:
                    without = f"{theirs.path} has no answer to {label!r}"
                    raise ConfigError(f"--compare: {without}, which {ours.path} has")

    @property
    def equal(self) -> bool:
        """Whether every prompt has the same answer in both."""
        return not list(self._moved())

    def lines(self) -> Iterator[str]:
        """Yield what differs, in words, and a last line on how much."""
        moved = list(self._moved())
        for label, (_, old, text), (_, new, other) in moved:
            what = "digests" if text == other else "texts and digests" if old != new else "texts"
            yield f"{label}: {what} differ: {old[:16]} {text!r:.60}, {new[:16]} {other!r:.60}"
        ours, theirs = self._one.parts, self._other.parts
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                yield f"fingerprint part {name}: {ours.get(name)}, {theirs.get(name)}"
        count = len(self._one.answers)
        yield (
            f"{count - len(moved)} of {count} prompts have the same answer in {self._one.path} and "
            f"{self._other.path}"
        )

    def _moved(self) -> Iterator[tuple[str, tuple[str, str, str], tuple[str, str, str]]]:
        for key, ours in self._one.answers.items():
            theirs = self._other.answers[key]
            if ours[1:] != theirs[1:]:
                yield ours[0], ours, theirs
