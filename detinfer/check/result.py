"""What a whole check found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from detinfer import __version__
from detinfer.check.answer import Divergence
from detinfer.check.counts import Control, Rung
from detinfer.check.families import FAMILIES, Family
from detinfer.check.mode_result import ModeResult
from detinfer.check.prompt_result import PromptResult
from detinfer.check.shrink import Shrunk

FORM = "detinfer-check-1"


@dataclass(frozen=True)
class CheckResult:
    """The whole check; the counts are those of the mode it is judged on, the first of them.

    Attributes:
        source: the model's name, or the server's address.
        fingerprint: the system fingerprint of what was checked.
        seed: what the loads were drawn from.
        noun: what a target is called.
        shrunk: the first divergence's load made small, if that was asked for.
        families: what loads were drawn from.
        parts: what the fingerprint is made of.
        control: what the same loads make of kernels that promise nothing, if that was asked for.
        ladder: of a server.
        troubles: what a server failed to answer, by kind, and was asked for again.
    """

    source: str
    fingerprint: str
    seed: int
    by_mode: dict[str, ModeResult]
    noun: str = "prompt"
    shrunk: Shrunk | None = None
    families: tuple[Family, ...] = FAMILIES
    parts: Mapping[str, str] = field(default_factory=dict)
    control: Control | None = None
    ladder: tuple[Rung, ...] = ()
    troubles: Mapping[str, int] = field(default_factory=dict)

    def told(self) -> Iterator[str]:
        """Yield what stands beside the verdict: the control, the ladder, a server's troubles."""
        if self.control is not None:
            yield self.control.told
        if self.ladder:
            yield f"ladder: {'; '.join(rung.told for rung in self.ladder)}"
        if self.troubles:
            counts = ", ".join(f"{name}: {count}" for name, count in self.troubles.items())
            yield f"the server's failures, each asked again: {counts}"

    @property
    def judged(self) -> ModeResult:
        """The mode that decides."""
        return next(iter(self.by_mode.values()))

    @property
    def reproducible(self) -> bool:
        """As ``ModeResult.reproducible``."""
        return self.judged.reproducible

    @property
    def runs(self) -> int:
        """As ``ModeResult.runs``."""
        return self.judged.runs

    @property
    def prompts(self) -> Sequence[PromptResult]:
        """As ``ModeResult.prompts``."""
        return self.judged.prompts

    @property
    def unique_outputs(self) -> int:
        """As ``ModeResult.unique_outputs``."""
        return self.judged.unique_outputs

    @property
    def unique_digests(self) -> int:
        """As ``ModeResult.unique_digests``."""
        return self.judged.unique_digests

    @property
    def first_divergence(self) -> Divergence | None:
        """As ``ModeResult.first_divergence``."""
        return self.judged.first_divergence

    @property
    def loads(self) -> int:
        """As ``ModeResult.loads``."""
        return self.judged.loads

    @property
    def seconds(self) -> float:
        """Of all modes together."""
        return sum(mode.seconds for mode in self.by_mode.values())

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "form": FORM,
            "version": __version__,
            "source": self.source,
            "system_fingerprint": self.fingerprint,
            "fingerprint": dict(self.parts),
            "seed": self.seed,
            "judged_on": self.judged.mode,
            **self.judged.counts(),
            "loads": self.loads,
            "seconds": round(self.seconds, 3),
            "shrunk": self.shrunk and self.shrunk.to_json(),
            "control": self.control and self.control.to_json(),
            "families": [family.name for family in self.families],
            "ladder": [asdict(rung) for rung in self.ladder],
            "troubles": dict(self.troubles),
            "by_mode": {n: mode.to_json(self.families) for n, mode in self.by_mode.items()},
        }
