"""All answers of one prompt in one mode, told apart and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from detinfer.check.answer import Answer, Divergence
from detinfer.check.families import Family
from detinfer.check.load import Load
from detinfer.check.target import Target

Kinds = tuple[Family, ...]


@dataclass
class PromptResult:
    """All answers of one prompt in one mode.

    Attributes:
        expected: its answer alone in the engine; not one of the runs.
        answers: every distinct answer, ``expected`` first, then in order of appearance.
        runs: for each run the number of its answer in ``answers``.
        kinds: runs by what their loads had, and the number of their answer.
        margins: of ``expected``, token by token, between the two likeliest; None if unknown.
    """

    mode: str
    number: int
    target: Target
    expected: Answer
    answers: list[Answer] = field(init=False)
    runs: list[int] = field(default_factory=list)
    first_divergence: Divergence | None = None
    kinds: Counter[tuple[Kinds, int]] = field(default_factory=Counter)
    margins: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self.answers = [self.expected]
        self._numbers = {self.expected: 0}

    def add(self, answer: Answer, load: Load, row: int, kinds: Kinds = ()) -> None:
        """Count one run, of a load that has these families."""
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
        self.kinds[kinds, number] += 1

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
            "margins": self.margins,
            "first_divergence": self.first_divergence and self.first_divergence.to_json(),
        }
