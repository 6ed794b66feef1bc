"""A puzzle's answer, as a check compares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from detinfer.check.answer import Answer

if TYPE_CHECKING:  # it loads torch
    from detinfer.recursive.tasks import Task


@dataclass(frozen=True)
class SolverAnswer(Answer):
    """A solution; two are equal only if all in them is, the step they halted at included."""

    unit: ClassVar[str] = "cell"

    @classmethod
    def of_told(cls, task: Task, told: Mapping[str, Any]) -> SolverAnswer:
        """Return a solution as a check compares it.

        Args:
            task: what it is a solution of.
            told: the fields of ``Solution``, by name.
        """
        end = f"{told['halted_by']} after {told['steps']} steps, q {told['q_hex']}"
        return cls(
            tuple(map(int, task.parse(told["grid"]))),
            told["grid"],
            f"{told['status']}: {end}, rollout {told['rollout']}",
            told["digest"],
        )

    def difference(self, other: Answer) -> str:
        """Return what differs, in words; the two must not be equal."""
        place = self.first_difference(other)
        if place is not None:
            return f"cell {place + 1} of the answer is the first that differs"
        if self.finish_reason != other.finish_reason:
            return f"the grids agree, but not how it ended: {other.finish_reason}"
        return "grids and ends agree, the states on the way do not"
