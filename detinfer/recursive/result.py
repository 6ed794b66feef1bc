"""What a solve answers: ``Solution``, and a ``TraceStep`` for each step on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["solved", "unsolved", "unsolvable", "error"]
HaltedBy = Literal["fixed", "q", "verified", "stable", "max_steps"]


@dataclass(frozen=True)
class TraceStep:
    """One supervision step of one run.

    Attributes:
        step: from 1.
        grid: the answer as it is after the step.
        changed: cells that differ from the step before; from the board, for the first.
        violations: cells that break a rule or a clue.
        q: the halting head's output; q_hex: its 32 bits.
        chain: digest of the run up to this step, in hex.
        rollout: which run.
    """

    step: int
    grid: str
    changed: int
    violations: int
    q: float
    q_hex: str
    chain: str
    rollout: int = 0


@dataclass(frozen=True)
class Solution:
    """The answer to one puzzle.

    Attributes:
        status: ``solved``: the grid keeps the clues and breaks no rule. ``unsolved``: it does not.
            ``unsolvable``: the board has no solution, nothing was run. ``error``: the model gave
            what is no number.
        puzzle: the board, as it was understood.
        grid: the answer as the model left it, never repaired; the board where nothing was run.
        valid: whether the grid breaks no rule.
        clues_kept: whether it has the board's clues.
        steps: of the chosen run.
        halted_by: what ended that run; None where nothing was run.
        q: the halting head's last output; None where nothing was run.
        q_hex: its 32 bits, "" for none.
        digest: SHA-256 in hex over model, board, parameters and all that every step of every run
            computed; equal digests mean equal answers, to the bit.
        rollout: which run was chosen.
        trace: of the chosen run, if it was asked for.
        reason: why there is no solution; None where there is one.
    """

    status: Status
    puzzle: str
    grid: str
    valid: bool
    clues_kept: bool
    steps: int
    halted_by: HaltedBy | None
    q: float | None
    q_hex: str
    digest: str
    rollout: int = 0
    trace: list[TraceStep] = field(default_factory=list)
    reason: str | None = None
