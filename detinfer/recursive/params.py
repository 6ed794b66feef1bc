"""What a solve may ask for: ``SolveParams``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from detinfer.errors import RequestError

Halt = Literal["fixed", "q", "verified", "stable"]
HALTS: tuple[str, ...] = get_args(Halt)

# Bounds on what one puzzle may cost: 64 rollouts of 1,024 steps are more than any accuracy needs.
MAX_STEPS, MAX_ROLLOUTS, MAX_NOISE, MAX_THRESHOLD = 1024, 64, 100.0, 1e30


@dataclass(frozen=True)
class SolveParams:
    """How long a puzzle is worked at, and how often.

    Attributes:
        max_steps: most supervision steps of a run, 1 to 1,024.
        halt: when a run ends before that. ``fixed``: never. ``q``: at the first step whose q, the
            halting head's output, is above ``halt_threshold``. ``verified``: when, besides, the
            grid keeps the clues and breaks no rule. ``stable``: when ``stable_steps`` steps in
            succession gave the same grid.
        halt_threshold: q must be greater, not equal.
        stable_steps: at least 2.
        rollouts: runs of the puzzle, 1 to 64. The first is the plain one; the others are of the
            puzzle in another disguise, or have noise on their latent state. Chosen is one that is
            right, of these the one with the highest q, of these the first.
        noise: 0 for disguises: symmetries of the task, as other digits, other orders of rows, a
            transposition. Else the standard deviation of the noise, up to 100.
        seed: of disguises and noise; 64 bits.
        trace: whether the answer tells of every step.

    Raises:
        RequestError: naming the first field that is out of range.
    """

    max_steps: int = 16
    halt: Halt = "verified"
    halt_threshold: float = 0.0
    stable_steps: int = 2
    rollouts: int = 1
    noise: float = 0.0
    seed: int = 0
    trace: bool = False

    def __post_init__(self) -> None:
        _integer("max_steps", self.max_steps, 1, MAX_STEPS)
        if self.halt not in HALTS:
            expected = f"one of {', '.join(HALTS)}"
            raise RequestError(f"halt: got {_shown(self.halt)}, expected {expected}", "halt")
        _number("halt_threshold", self.halt_threshold, -MAX_THRESHOLD, MAX_THRESHOLD)
        _integer("stable_steps", self.stable_steps, 2, MAX_STEPS)
        _integer("rollouts", self.rollouts, 1, MAX_ROLLOUTS)
        _number("noise", self.noise, 0.0, MAX_NOISE)
        _integer("seed", self.seed, 0, (1 << 64) - 1)
        if not isinstance(self.trace, bool):
            raise RequestError(f"trace: got {_shown(self.trace)}, expected a boolean", "trace")
        for name in ("halt_threshold", "noise"):  # 0, 0.0 and -0.0 are one request
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)

    def that_matter(self) -> dict[str, object]:
        """Return the fields that the answer is a function of; others stay out of its digest."""
        idle = {"trace"}
        if self.rollouts == 1:
            idle |= {"noise", "seed"}
        if self.halt not in ("q", "verified"):
            idle.add("halt_threshold")
        if self.halt != "stable":
            idle.add("stable_steps")
        return {name: value for name, value in asdict(self).items() if name not in idle}


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(
            f"{name}: got {_shown(value)}, expected an integer in {low}..{high}", name
        )


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        expected = f"a number in {low:g}..{high:g}"
        raise RequestError(f"{name}: got {_shown(value)}, expected {expected}", name)


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print the longest
        return f"an integer of {value.bit_length()} bits"
    return repr(value) if len(repr(value)) <= 40 else f"{value!r:.40}…"
