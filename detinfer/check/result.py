"""What a check found: answers counted prompt by prompt and mode by mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from detinfer import __version__
from detinfer.check.answer import Answer, Divergence
from detinfer.check.load import Load
from detinfer.check.shrink import Shrunk
from detinfer.check.target import Target


@dataclass
class PromptResult:
    """All answers of one prompt in one mode.

    Attributes:
        expected: its answer alone in the engine; not one of the runs.
        answers: every distinct answer, ``expected`` first, then in order of appearance.
        runs: for each run the number of its answer in ``answers``.
    """

    mode: str
    number: int
    target: Target
    expected: Answer
    answers: list[Answer] = field(init=False)
    runs: list[int] = field(default_factory=list)
    first_divergence: Divergence | None = None

    def __post_init__(self) -> None:
        self.answers = [self.expected]
        self._numbers = {self.expected: 0}

    def add(self, answer: Answer, load: Load, row: int) -> None:
        """Count one run."""
        number = self._numbers.setdefault(answer, len(self.answers))
        if number == len(self.answers):
            self.answers.append(answer)
        if number and self.first_divergence is None:
            self.first_divergence = Divergence(
                mode=self.mode,
                prompt=self.number,
                run=len(self.runs),
                load=load,
                row=row,
                position=self.expected.first_difference(answer),
                expected=self.expected,
                got=answer,
            )
        self.runs.append(number)

    @property
    def unique_outputs(self) -> int:
        """Distinct outputs: token ids, text, log-probabilities and the reason to finish."""
        return len({replace(answer, digest="") for answer in self.answers})

    @property
    def unique_digests(self) -> int:
        """Distinct digests, that is, distinct logits anywhere on the way."""
        return len({answer.digest for answer in self.answers})

    @property
    def divergent_runs(self) -> int:
        """Runs whose answer is not the expected one, in any bit of what it is made of."""
        return len(self.runs) - self.runs.count(0)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.target.name,
            "prompt": self.target.prompt,
            "params": asdict(self.target.params),
            "runs": len(self.runs),
            "unique_outputs": self.unique_outputs,
            "unique_digests": self.unique_digests,
            "divergent_runs": self.divergent_runs,
            "expected": asdict(self.expected),
            "first_divergence": self.first_divergence and self.first_divergence.to_json(),
        }


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

    @property
    def first_divergence(self) -> Divergence | None:
        """The one of the earliest load, None if every run agrees."""
        found = [p.first_divergence for p in self.prompts if p.first_divergence]
        return min(found, key=lambda one: (one.load.number, one.row), default=None)

    @property
    def reproducible(self) -> bool:
        """Whether every run of every prompt gave the answer it gives alone."""
        return not self.divergent_runs

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **_counts(self),
            "loads": self.loads,
            "seconds": round(self.seconds, 3),
            "engine": self.engine,
            "prompts": [prompt.to_json() for prompt in self.prompts],
        }


@dataclass(frozen=True)
class CheckResult:
    """The whole check; the counts are those of the mode it is judged on, the first of them.

    Attributes:
        source: the model's name, or the server's address.
        fingerprint: the system fingerprint of what was checked.
        seed: what the loads were drawn from.
        noun: what a target is called.
        shrunk: the first divergence's load made small, if that was asked for.
    """

    source: str
    fingerprint: str
    seed: int
    by_mode: dict[str, ModeResult]
    noun: str = "prompt"
    shrunk: Shrunk | None = None

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
            "version": __version__,
            "source": self.source,
            "system_fingerprint": self.fingerprint,
            "seed": self.seed,
            "judged_on": self.judged.mode,
            **_counts(self.judged),
            "loads": self.loads,
            "seconds": round(self.seconds, 3),
            "shrunk": self.shrunk and self.shrunk.to_json(),
            "by_mode": {name: mode.to_json() for name, mode in self.by_mode.items()},
        }


def _counts(mode: ModeResult) -> dict[str, Any]:
    return {
        "reproducible": mode.reproducible,
        "runs": mode.runs,
        "unique_outputs": mode.unique_outputs,
        "unique_digests": mode.unique_digests,
        "first_divergence": mode.first_divergence and mode.first_divergence.to_json(),
    }
