"""One run of a puzzle, from its first step to the one it halts at; and the job of several runs."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detinfer.kernels.cpu.stream import stream
from detinfer.recursive.chain import folded, next_link
from detinfer.recursive.params import SolveParams
from detinfer.recursive.puzzle import Puzzle
from detinfer.recursive.result import HaltedBy, Solution, Status, TraceStep
from detinfer.recursive.tasks.symmetry import Symmetry

F32 = npt.NDArray[np.float32]
Grid = npt.NDArray[np.int8]


def q_hex(q: np.float32) -> str:
    """Return the bits of q, the most significant first."""
    return struct.pack(">f", q).hex()


class Run:
    """A rollout of a job: where it is, and how it ended.

    Attributes:
        rollout: its number; 0 is the plain run.
        board: what the model is shown: the puzzle, or a disguise of it. [cells]
        step: steps done.
        grid, q: of the last step, without the disguise. [cells]
        link: of the digest's chain.
        halted_by: None while it runs, and after a failure.
        failed: whether a step gave what is no number.
        trace: its steps, if the caller asked.
    """

    def __init__(self, job: Job, rollout: int) -> None:
        self.job, self.rollout = job, rollout
        self.step, self.grid, self.q = 0, job.puzzle.board, np.float32(0)
        self._symmetry = self._draw_symmetry()
        self.board = self._symmetry.disguised(self.grid) if self._symmetry else self.grid
        self.link = job.first
        self.halted_by: HaltedBy | None = None
        self.failed = False
        self.trace: list[TraceStep] = []
        self._same = 0

    @property
    def ended(self) -> bool:
        """Return whether it leaves its slot."""
        return self.failed or self.halted_by is not None or self.job.given_up

    @property
    def is_noisy(self) -> bool:
        """Return whether noise is added before its next step."""
        return self.rollout > 0 and self.job.params.noise > 0

    def _draw_symmetry(self) -> Symmetry | None:
        if self.rollout == 0 or self.is_noisy:
            return None
        random = stream(np.uint64(self.job.params.seed), np.uint64(self.rollout))
        return self.job.puzzle.task.symmetry(random)

    def advance(self, grid: Grid, q: np.float32, y: F32, z: F32) -> list[TraceStep]:
        """Take in what a step gave, and return it for users, if they asked."""
        grid = self._symmetry.undone(grid) if self._symmetry else grid.copy()
        before, self.grid, self.q = self.grid, grid, q
        changed = int(np.count_nonzero(before != grid))
        self._same = self._same + 1 if self.step and not changed else 1
        self.step += 1
        self.link = next_link(self.link, self.step, grid, q, y, z)
        self.halted_by = self._halt()
        if self.job.params.trace:
            self.trace.append(self._told(changed))
        return self.trace[-1:]

    def _told(self, changed: int) -> TraceStep:
        task, board = self.job.puzzle.task, self.job.puzzle.board
        return TraceStep(
            step=self.step,
            grid=task.render(self.grid),
            changed=changed,
            violations=int(np.count_nonzero(task.wrong(board, self.grid))),
            q=float(self.q),
            q_hex=q_hex(self.q),
            chain=self.link.hex(),
            rollout=self.rollout,
        )

    def holds(self) -> bool:
        """Return whether its grid is an answer: the clues kept, no rule broken."""
        puzzle = self.job.puzzle
        return bool(puzzle.task.holds(puzzle.board[None], self.grid[None])[0])

    def _halt(self) -> HaltedBy | None:
        params = self.job.params
        last = self.step == params.max_steps
        if params.halt == "fixed":
            return "fixed" if last else None
        if params.halt == "stable":
            met = self._same >= params.stable_steps
        else:  # binary64 holds both numbers
            met = float(self.q) > params.halt_threshold
            met = met and (params.halt == "q" or self.holds())
        return params.halt if met else "max_steps" if last else None


@dataclass(eq=False)
class Job:
    """A puzzle with all of its runs.

    Attributes:
        name: what the caller knows it by.
        first: what each run's chain starts from.
        runs: those that have begun, in order.
        given_up: whether the caller wants no answer any more.
    """

    name: str
    puzzle: Puzzle
    params: SolveParams
    first: bytes
    runs: list[Run] = field(default_factory=list)
    given_up: bool = False

    def begin(self) -> Run:
        """Return the next run."""
        run = Run(self, len(self.runs))
        self.runs.append(run)
        return run

    @property
    def all_begun(self) -> bool:
        """Return whether no run is waiting."""
        return len(self.runs) == self.params.rollouts

    @property
    def ended(self) -> bool:
        """Return whether there is a solution to tell."""
        no_run = self.puzzle.unsolvable is not None
        return no_run or (self.all_begun and all(run.ended for run in self.runs))

    def solution(self) -> Solution:
        """Choose a run: one that is right, of these the highest q, of these the first."""
        if self.puzzle.unsolvable is not None:
            return self._solution("unsolvable", Run(self, 0), self.puzzle.unsolvable)
        failed = next((run for run in self.runs if run.failed), None)
        if failed is not None:  # the first by number, not by time
            reason = f"rollout {failed.rollout} gave a NaN or an infinity at step {failed.step + 1}"
            return self._solution("error", failed, reason)
        right = [run for run in self.runs if run.holds()]
        best = max(right or self.runs, key=lambda run: (run.q, -run.rollout))
        if right:
            return self._solution("solved", best)
        return self._solution("unsolved", best, "the model found no answer that is right")

    def _solution(self, status: Status, run: Run, reason: str | None = None) -> Solution:
        task, board = self.puzzle.task, self.puzzle.board
        clues = task.clues(board)
        as_if_given = np.where(clues, run.grid, board)
        sound = task.clash(as_if_given) is None
        return Solution(
            status=status,
            puzzle=self.puzzle.text,
            grid=task.render(run.grid),
            valid=sound and bool(task.holds(as_if_given[None], run.grid[None])[0]),
            clues_kept=bool((~clues | (board == run.grid)).all()),
            steps=run.step,
            halted_by=run.halted_by,
            q=float(run.q) if run.step else None,
            q_hex=q_hex(run.q) if run.step else "",
            digest=folded([run.link for run in self.runs] or [self.first]),
            rollout=run.rollout,
            trace=run.trace,
            reason=reason,
        )
