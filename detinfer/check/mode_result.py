"""All answers in one mode, counted prompt by prompt and by what their loads had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from detinfer.check.answer import Divergence
from detinfer.check.counts import FamilyResult
from detinfer.check.families import FAMILIES, Family
from detinfer.check.prompt_result import Kinds, PromptResult

# What an engine did that must not show in any answer, under the names of ``Engine.stats``.
ENGINE_COUNTS = (
    "steps",
    "preemptions",
    "evictions",
    "prefix_hits",
    "drafted_tokens",
    "accepted_tokens",
)


@dataclass
class ModeResult:
    """All answers in one mode.

    Attributes:
        engine: what the engine did meanwhile, ``ENGINE_COUNTS``.
    """

    mode: str
    prompts: list[PromptResult]
    loads: int = 0
    seconds: float = 0.0
    engine: dict[str, int] = field(default_factory=dict)

    def count(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Take what the engine did from its counts at the start and now."""
        self.engine = {
            name: after[name] - before[name]
            for name in ENGINE_COUNTS
            if name in before and name in after
        }

    @property
    def runs(self) -> int:
        """Answers compared, over all prompts."""
        return sum(len(prompt.runs) for prompt in self.prompts)

    @property
    def unique_outputs(self) -> int:
        """Most distinct outputs of any one prompt."""
        return max(prompt.unique_outputs for prompt in self.prompts)

    @property
    def unique_digests(self) -> int:
        """Most distinct digests of any one prompt."""
        return max(prompt.unique_digests for prompt in self.prompts)

    @property
    def unique_answers(self) -> int:
        """Most distinct answers of any one prompt: outputs, digests, or both."""
        return max(len(prompt.answers) for prompt in self.prompts)

    @property
    def divergent_runs(self) -> int:
        """Runs, over all prompts, whose answer is not the expected one."""
        return sum(prompt.divergent_runs for prompt in self.prompts)

    def of(self, chosen: Callable[[Kinds], bool]) -> FamilyResult:
        """Return the counts of the runs whose loads had what ``chosen`` says yes to."""
        runs = divergent = digests = 0
        for prompt in self.prompts:
            seen = {prompt.expected.digest}
            for (kinds, number), count in prompt.kinds.items():
                if chosen(kinds):
                    runs += count
                    divergent += count if number else 0
                    seen.add(prompt.answers[number].digest)
            digests = max(digests, len(seen))
        return FamilyResult(runs, digests, divergent)

    def by_family(self, families: Iterable[Family]) -> dict[Family, FamilyResult]:
        """Return the counts of each family that any load had."""
        found = {}
        for family in families:
            counts = self.of(partial(_has, family))
            if counts.runs:
                found[family] = counts
        return found

    @property
    def first_divergence(self) -> Divergence | None:
        """The one of the earliest load, None if every run agrees."""
        found = [p.first_divergence for p in self.prompts if p.first_divergence]
        return min(found, key=lambda one: (one.load.number, one.row), default=None)

    @property
    def reproducible(self) -> bool:
        """Whether every run of every prompt gave the answer it gives alone."""
        return not self.divergent_runs

    def counts(self) -> dict[str, Any]:
        """Return the verdict and what it rests on, as JSON values."""
        return {
            "reproducible": self.reproducible,
            "runs": self.runs,
            "unique_outputs": self.unique_outputs,
            "unique_digests": self.unique_digests,
            "first_divergence": self.first_divergence and self.first_divergence.to_json(),
        }

    def to_json(self, families: Iterable[Family] = FAMILIES) -> dict[str, Any]:
        """As JSON values."""
        return {
            **self.counts(),
            "families": {
                family.name: {"what": family.words, **asdict(counts)}
                for family, counts in self.by_family(families).items()
            },
            "loads": self.loads,
            "seconds": round(self.seconds, 3),
            "engine": self.engine,
            "prompts": [prompt.to_json() for prompt in self.prompts],
        }


def _has(family: Family, kinds: Kinds) -> bool:
    return family in kinds
