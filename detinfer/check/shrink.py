"""The smallest load that still shows a difference, and which kinds of change it needs.

Whatever can be taken away without the difference going away is taken away: other requests, when
they come and go, what they ask for, limits of a step. What is left names the cause.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detinfer.check.answer import Answer, Divergence
from detinfer.check.load import Load, Placement, Row, SolverPlacement
from detinfer.check.subject import Subject
from detinfer.params import SamplingParams

MOST_PLAYS = 200  # of candidates

# What a load changes, in the words of the report.
SIZE, SLOT, ARRIVAL, ABORT = "batch size", "slot", "arrival", "abort"
ASKED, MODE = "what neighbours ask for", "fast neighbours"
CHUNK, SLOTS, CACHE, PAGES = "chunk size", "waiting for slots", "cached pages", "page placement"
THREADS, REPEATS, BEFORE = "threads", "repeating it alone", "what was served before"


@dataclass(frozen=True)
class Shrunk:
    """What is left of a load.

    Attributes:
        load: the smallest that was found; as it was where playing it again shows no difference.
        row: place of the run whose answer differs.
        families: what it needs to differ; ``BEFORE`` alone where it does not differ again.
        expected, got: the answer alone, and in the load.
        plays: loads that were played to find it.
    """

    load: Load
    row: int
    families: tuple[str, ...]
    expected: Answer
    got: Answer
    plays: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "families": self.families,
            "plays": self.plays,
            "row": self.row,
            "load": self.load.describe(),
            "expected": asdict(self.expected),
            "got": asdict(self.got),
        }


class Shrinker:
    """Shrinks one load.

    Args:
        subject: which the load was played on.
        found: the run whose answer differs.
    """

    def __init__(self, subject: Subject, found: Divergence) -> None:
        self._subject, self._load, self._row = subject, found.load, found.row
        self._expected, self._got = found.expected, found.got
        self._plays = 0

    def run(self) -> Shrunk:
        """Take away what can be taken away."""
        if not self._differs(self._load, self._row):
            return self._shrunk((BEFORE,))
        before = None
        while before != self._load:  # what one change frees, another may take
            before = self._load
            self._take_rows()
            for _, simpler in self._simpler():
                self._try(*simpler)
        return self._shrunk(tuple(dict.fromkeys(self._families())))

    def _shrunk(self, families: tuple[str, ...]) -> Shrunk:
        return Shrunk(self._load, self._row, families, self._expected, self._got, self._plays)

    def _differs(self, load: Load, row: int) -> bool:
        if self._plays >= MOST_PLAYS:
            return False
        self._plays += 1
        got = self._subject.play(load)[row]
        if got == self._expected:
            return False
        self._got = got
        return True

    def _try(self, load: Load, row: int) -> bool:
        """Keep a simpler load if it still differs."""
        if load == self._load or not self._differs(load, row):
            return False
        self._load, self._row = load, row
        return True

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
                    taken |= self._try(*self._without(gone))
            if size == 1 and not taken:
                return
            size = max(1, size // 2)

    def _without(self, gone: Sequence[int]) -> tuple[Load, int]:
        rows = tuple(row for at, row in enumerate(self._load.rows) if at not in gone)
        load = dataclasses.replace(self._load, rows=rows)
        return load, self._row - sum(at < self._row for at in gone)

    def _simpler(self) -> Iterator[tuple[str, tuple[Load, int]]]:
        """Yield the load with one thing as it is by default, and that thing's name."""
        for name, change in _PLACEMENTS:
            if isinstance(self._load.placement, Placement):
                placement = change(self._load.placement, self._subject)
                yield name, (dataclasses.replace(self._load, placement=placement), self._row)
        if isinstance(self._load.placement, SolverPlacement):
            alone = dataclasses.replace(self._load.placement, threads=1)
            yield THREADS, (dataclasses.replace(self._load, placement=alone), self._row)
        for name, change_row in _ROWS:
            for at in range(len(self._load.rows)):
                if at != self._row or name is ARRIVAL:
                    yield name, self._changed(at, change_row)
        yield SLOT, self._first()

    def _changed(self, at: int, change: Callable[[Row], Row]) -> tuple[Load, int]:
        rows = list(self._load.rows)
        rows[at] = change(rows[at])
        order = sorted(range(len(rows)), key=lambda one: rows[one].arrival)
        load = dataclasses.replace(self._load, rows=tuple(rows[one] for one in order))
        return load, order.index(self._row)

    def _first(self) -> tuple[Load, int]:
        """Return the load with the run before those that come with it."""
        rows = list(self._load.rows)
        run = rows.pop(self._row)
        at = next(i for i, row in enumerate([*rows, run]) if row.arrival >= run.arrival)
        rows.insert(at, run)
        return dataclasses.replace(self._load, rows=tuple(rows)), at

    def _families(self) -> Iterator[str]:
        """Yield what could not be taken away."""
        if len(self._load.rows) > 1:
            yield SIZE
        for name, (load, row) in self._simpler():
            if (load, row) != (self._load, self._row):
                yield name
        if len(self._load.rows) == 1 and all(
            simpler == (self._load, self._row) for _, simpler in self._simpler()
        ):
            yield REPEATS


def _plain(row: Row) -> Row:
    """Ask for no more than tokens."""
    if not isinstance(row.params, SamplingParams):
        return row
    asked = row.params
    params = SamplingParams(
        max_tokens=asked.max_tokens, ignore_eos=True, deterministic=asked.deterministic
    )
    return dataclasses.replace(row, params=params)


def _deterministic(row: Row) -> Row:
    if not isinstance(row.params, SamplingParams):
        return row
    params = dataclasses.replace(row.params, deterministic=True)
    return dataclasses.replace(row, params=params)


_ROWS: tuple[tuple[str, Callable[[Row], Row]], ...] = (
    (ARRIVAL, lambda row: dataclasses.replace(row, arrival=0)),
    (ABORT, lambda row: dataclasses.replace(row, abort_after=None)),
    (ASKED, _plain),
    (MODE, _deterministic),
)

_PLACEMENTS: tuple[tuple[str, Callable[[Placement, Subject], Placement]], ...] = (
    (CHUNK, lambda one, subject: dataclasses.replace(one, max_chunk=None)),
    (
        CHUNK,
        lambda one, subject: dataclasses.replace(
            one,
            max_num_batched_tokens=subject.bounds.max_num_batched_tokens
            or one.max_num_batched_tokens,
        ),
    ),
    (
        SLOTS,
        lambda one, subject: dataclasses.replace(
            one, max_num_seqs=subject.bounds.max_num_seqs or one.max_num_seqs
        ),
    ),
    (CACHE, lambda one, subject: dataclasses.replace(one, cold=True)),
    (PAGES, lambda one, subject: dataclasses.replace(one, page_seed=None)),
)
