"""Counts beside the verdict: by family of change, of the control, by rung of the ladder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class FamilyResult:
    """Of the runs whose loads had some family of change.

    Attributes:
        unique_digests: most distinct digests of any one prompt, the one it gives alone included.
        divergent_runs: those whose answer is not the one alone.
    """

    runs: int
    unique_digests: int
    divergent_runs: int


@dataclass(frozen=True)
class Control:
    """What the same kind of loads makes of kernels that promise nothing.

    Attributes:
        what: what was asked, or why nothing could be.
        runs: answers compared; 0 where nothing could be.
    """

    what: str
    runs: int = 0
    unique_outputs: int = 0
    unique_digests: int = 0
    divergent_runs: int = 0

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"possible": self.runs > 0, **asdict(self)}

    @property
    def told(self) -> str:
        """In words."""
        if not self.runs:
            return f"negative control: not possible, {self.what}"
        differ = f"{self.divergent_runs} of {self.runs} runs differ"
        if not self.divergent_runs:
            differ = f"none of {self.runs} runs differs: such loads do not tell it from ours"
        digests = f"{self.unique_digests} digest{'s' if self.unique_digests > 1 else ''}"
        return f"negative control: {self.what}: up to {digests} a prompt, {differ}"


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder that a server is checked by.

    Attributes:
        counts: None where it was not tried.
        why: it was not.
    """

    name: str
    counts: FamilyResult | None
    why: str = ""

    @property
    def told(self) -> str:
        """In words."""
        if self.counts is None or not self.counts.runs:
            return f"{self.name}: {self.why or 'no runs'}"
        digests = self.counts.unique_digests
        return f"{self.name}: {digests} digest{'s' * (digests > 1)} ({self.counts.runs} runs)"
