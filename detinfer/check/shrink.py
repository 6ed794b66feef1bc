"""The smallest load that still shows a difference, and which families of change it needs.

Whatever can be taken away without the difference going away is taken away: other requests, when
they come and go, what they ask for, limits of a step. What is left names the cause.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detinfer.check.answer import Answer, Divergence
from detinfer.check.draw import longest_of
from detinfer.check.families import FAMILIES, in_load
from detinfer.check.load import Load, Placement, Row
from detinfer.check.parting import Parting, part
from detinfer.check.subject import Subject
from detinfer.check.target import sampling
from detinfer.config import pages_for
from detinfer.errors import DetinferError
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.params import SamplingParams

# Of candidates; what has been taken away by then is. Fast steps go module by module, and are slow.
MOST_PLAYS, MOST_SECONDS = 200, 90.0
_SUSPECTS: tuple[dict[str, Any], ...] = (
    {"max_chunk": 37},
    {"max_with_drafts": 0},
    {"cold": False, "shared": True},
    {"spoiled": True},
)
# Tokens of a stranger's prompt, of what it generates; steps that somebody has alone.
_USUAL, _LONG, _FEW, _WHILE = 100, 500, 32, 8

# Of no family: what no load changes.
REPEATS, BEFORE = "repeating it alone", "what was served before"


@dataclass(frozen=True)
class Shrunk:
    """What is left of a load.

    Attributes:
        load: the smallest that was found; as it was where playing it again shows no difference.
        row: place of the run whose answer differs.
        families: what it needs to differ; ``BEFORE`` alone where it does not differ again.
        expected, got: the answer alone, and in the load.
        plays: loads that were played to find it.
        parting: where the two part, and how near the candidates were; None if it is not known.
    """

    load: Load
    row: int
    families: tuple[str, ...]
    expected: Answer
    got: Answer
    plays: int
    parting: Parting | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "families": self.families,
            "plays": self.plays,
            "row": self.row,
            "load": self.load.describe(),
            "expected": asdict(self.expected),
            "got": asdict(self.got),
            "parting": self.parting and self.parting.to_json(),
        }


class Shrinker:
    """Shrinks one load.

    Args:
        subject: which the load was played on.
        found: the run whose answer differs.
        alone: the load of which ``found.expected`` is the answer.
    """

    def __init__(self, subject: Subject, found: Divergence, alone: Load) -> None:
        self._subject, self._load, self._row = subject, found.load, found.row
        self._expected, self._got = found.expected, found.got
        self._alone = alone
        self._plays = 0
        self._until = time.monotonic() + MOST_SECONDS
        self._tried: set[Load] = set()  # since something was taken away last

    def run(self) -> Shrunk:
        """Take away what can be taken away."""
        if not self._differs(self._load, self._row):
            return self._shrunk((BEFORE,))
        # The other runs are neighbours now: one answer alone is looked at.
        run = self._load.rows[self._row]
        rows = [one if one is run else dataclasses.replace(one, target=None, repeats=one.target)
                if one.target is not None else one for one in self._load.rows]  # fmt: skip
        self._keep(dataclasses.replace(self._load, rows=tuple(rows)))
        any(self._try(suspect) for suspect in self._suspects())
        before = None
        while before != self._load:  # what one change frees, another may take
            before = self._load
            self._tried.clear()
            self._take_rows()
            for family in FAMILIES:
                self._take(family.changes)
        return self._shrunk(tuple(self._families()))

    def _shrunk(self, families: tuple[str, ...]) -> Shrunk:
        parting = part(self._subject, self._alone, self._load, self._row, self._expected, self._got)
        return Shrunk(
            self._load,
            self._row,
            families,
            self._expected,
            self._got,
            self._plays,
            parting,
        )

    def _differs(self, load: Load, row: int) -> bool:
        return any(self._differs_once(load, row) for _ in range(self._subject.tries))

    def _differs_once(self, load: Load, row: int) -> bool:
        if self._plays >= MOST_PLAYS or (self._plays and time.monotonic() > self._until):
            return False
        self._plays += 1
        self._tried.add(load)
        try:
            got = self._subject.play(load)[row]
        except DetinferError:  # a failure is another matter
            return False
        if got == self._expected:
            return False
        self._got = got
        return True

    def _suspects(self) -> Iterator[Load]:
        """Yield loads of one to three requests, each with what has been a cause elsewhere.

        Many requests in a step cut each other's prompts, warm the cache and move pages: where one
        of these does it alone, it is the cause, and the others are only how it came to that.
        """
        placement, run = self._load.placement, self._load.rows[self._row]
        if not isinstance(placement, Placement) or not isinstance(run.params, SamplingParams):
            return
        run = dataclasses.replace(run, arrival=0)
        calm = Load(self._load.number, (run,), placement)
        for family in FAMILIES:
            calm = family.without(calm, self._subject.bounds)
        quiet, got = calm.placement, self._got
        assert isinstance(quiet, Placement)
        if self._differs(calm, 0):  # so would all of them
            self._got = got
            return
        for suspect in (*_SUSPECTS, {"page_seed": placement.page_seed}):
            yield dataclasses.replace(calm, placement=dataclasses.replace(quiet, **suspect))
        quiet = dataclasses.replace(quiet, shared=True)
        calm = dataclasses.replace(calm, placement=quiet)
        yield from (dataclasses.replace(calm, rows=rows) for rows in self._company(run))
        need = pages_for(longest_of(run, self._subject.bounds))
        if need <= (self._subject.bounds.num_pages or 0):
            scarce = dataclasses.replace(quiet, pages=need)
            rows = self._heirs(run, need * PAGE_SIZE - _FEW)
            yield dataclasses.replace(calm, rows=rows, placement=scarce)

    def _company(self, run: Row) -> Iterator[tuple[Row, ...]]:
        """Yield a run beside itself, beside a long prompt, and with pages of one that leaves."""
        yield self._copy(run), run
        yield self._stranger(run, _LONG), run
        most = self._subject.bounds.max_num_batched_tokens or 1
        read = -(-longest_of(run, self._subject.bounds) // most)  # steps until its pages are named
        leaving = dataclasses.replace(self._copy(run), abort_after=read + 2)
        sharing = dataclasses.replace(run, arrival=read)
        yield leaving, sharing, dataclasses.replace(self._stranger(run, _USUAL), arrival=read + 3)

    def _heirs(self, run: Row, length: int) -> tuple[Row, ...]:
        """Return a run that comes when somebody else has been given the pages it once filled."""
        leaving = dataclasses.replace(self._copy(run), abort_after=_WHILE)
        stranger = dataclasses.replace(self._stranger(run, length), arrival=_WHILE + 1)
        stranger = dataclasses.replace(stranger, abort_after=_WHILE)
        return leaving, stranger, dataclasses.replace(run, arrival=2 * _WHILE + 2)

    def _copy(self, run: Row) -> Row:
        return dataclasses.replace(run, target=None, repeats=run.target)

    def _stranger(self, run: Row, length: int) -> Row:
        """Return somebody of the run's mode with a prompt of its own."""
        bounds = self._subject.bounds
        length = max(1, min(length, bounds.longest - _FEW))
        params = SamplingParams(
            max_tokens=_FEW, ignore_eos=True, deterministic=sampling(run.params).deterministic
        )
        return Row(tuple(at % bounds.vocab_size for at in range(length)), params)

    def _keep(self, load: Load) -> None:
        self._load = load
        self._row = next(at for at, row in enumerate(load.rows) if row.target is not None)

    def _try(self, load: Load) -> bool:
        """Keep a simpler load if it still differs."""
        run = next(at for at, row in enumerate(load.rows) if row.target is not None)
        if load in self._tried or not self._differs(load, run):
            return False
        self._keep(load)
        return True

    def _take(self, changes: Any) -> None:
        """Take away all of a family that can be."""
        taken = True
        while taken:
            taken = any(self._try(less) for less in changes(self._load, self._subject.bounds))

    def _take_rows(self) -> None:
        """Take away requests, many at once first."""
        size = max(1, (len(self._load.rows) - 1) // 2)
        while True:
            taken = False
            at = len(self._load.rows)
            while at > 0:
                at = max(0, at - size)
                gone = [i for i in range(at, at + size) if i != self._row]
                gone = [i for i in gone if i < len(self._load.rows)]
                if gone:
                    taken |= self._try(self._without(gone))
            if size == 1 and not taken:
                return
            size = max(1, size // 2)

    def _without(self, gone: Sequence[int]) -> Load:
        rows = tuple(row for at, row in enumerate(self._load.rows) if at not in gone)
        return dataclasses.replace(self._load, rows=rows)

    def _families(self) -> Iterator[str]:
        """Yield what could not be taken away."""
        left = in_load(self._load, self._subject.bounds)
        yield from (family.words for family in left)
        if not left:
            yield REPEATS
