"""The kinds of change that a load makes, each with what takes it away again.

A check draws loads with all of them, or with those of ``--families``, and counts its runs by them.
Where an answer differs, whatever can be taken away is: what is left names the cause.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from detinfer.check.load import Load, PuzzleRow, Row, SolverPlacement
from detinfer.check.target import Bounds, sampling
from detinfer.errors import ConfigError
from detinfer.params import MAX_CONSTRAINT, SamplingParams, constraint_of

Changes = Callable[[Load, Bounds], Iterator[Load]]


@dataclass(frozen=True)
class Family:
    """One kind of change.

    Attributes:
        name: on the command line.
        words: what reports call it.
        changes: the loads that have a little less of it, one change each; none without it.
    """

    name: str
    words: str
    changes: Changes

    def is_in(self, load: Load, bounds: Bounds) -> bool:
        """Return whether a load has any of it."""
        return next(self.changes(load, bounds), None) is not None

    def without(self, load: Load, bounds: Bounds) -> Load:
        """Return a load as it is with none of it."""
        while (less := next(self.changes(load, bounds), None)) is not None:
            load = less
        return load


def first_run(load: Load) -> int:
    """Return the place of the first run of a target."""
    return next(at for at, row in enumerate(load.rows) if row.target is not None)


def _fewer(load: Load, bounds: Bounds) -> Iterator[Load]:
    run = first_run(load)
    for at in range(len(load.rows)):
        if at != run:
            yield dataclasses.replace(load, rows=load.rows[:at] + load.rows[at + 1 :])


def _settings(**plain: Callable[[Bounds], Any]) -> Changes:
    """Of how a load is stepped: the fields' values where nothing was drawn."""

    def changes(load: Load, bounds: Bounds) -> Iterator[Load]:
        for name, value in plain.items():
            drawn = getattr(load.placement, name, None)
            if drawn is not None and load.placement is not None and drawn != value(bounds):
                plainer: dict[str, Any] = {name: value(bounds)}
                changed = dataclasses.replace(load.placement, **plainer)
                yield dataclasses.replace(load, placement=changed)

    return changes


def _waiting(load: Load, bounds: Bounds) -> Iterator[Load]:
    """Of how many run at once: a limit that they all fit under is none."""
    for name in ("max_num_seqs", "max_batch"):
        most = getattr(load.placement, name, None)
        if load.placement is not None and most is not None and most < len(load.rows):
            roomy: dict[str, Any] = {name: len(load.rows)}
            changed = dataclasses.replace(load.placement, **roomy)
            yield dataclasses.replace(load, placement=changed)


def _threads(load: Load, bounds: Bounds) -> Iterator[Load]:
    plain = 1 if isinstance(load.placement, SolverPlacement) else None
    yield from _settings(threads=lambda bounds: plain)(load, bounds)


def _rows(change: Callable[[Row, Row], Row], runs_too: bool = False) -> Changes:
    """Of one request each: ``change(row, run)``, where the run is the one that is compared."""

    def changes(load: Load, bounds: Bounds) -> Iterator[Load]:
        run = load.rows[first_run(load)]
        for at, row in enumerate(load.rows):
            if row.target is not None and not runs_too:
                continue
            changed = change(row, run)
            if changed != row:
                yield _arranged(load, (*load.rows[:at], changed, *load.rows[at + 1 :]))

    return changes


def _slot(load: Load, bounds: Bounds) -> Iterator[Load]:
    """Of a run among those that come with it: first."""
    yield from _moved(load, sorted(load.rows, key=lambda row: (row.arrival, row.target is None)))


def _order(load: Load, bounds: Bounds) -> Iterator[Load]:
    """Of those that come together: sorted, but runs where runs were."""
    runs = iter(sorted((row for row in load.rows if row.target is not None), key=_place))
    others = iter(sorted((row for row in load.rows if row.target is None), key=_place))
    yield from _moved(load, [next(others if row.target is None else runs) for row in load.rows])


def _moved(load: Load, rows: list[Row]) -> Iterator[Load]:
    moved = dataclasses.replace(load, rows=tuple(rows))
    if moved != load:
        yield moved


def _arranged(load: Load, rows: Iterable[Row]) -> Load:
    return dataclasses.replace(load, rows=tuple(sorted(rows, key=lambda row: row.arrival)))


def _plain(row: Row, run: Row) -> Row:
    """Ask for no more than tokens, by the same grammar if there is one."""
    asked = row.params
    if not isinstance(asked, SamplingParams):
        return row
    given = constraint_of(asked)
    kept: dict[str, Any] = {} if given is None else {given[0]: given[1]}
    params = SamplingParams(
        max_tokens=asked.max_tokens, ignore_eos=True, deterministic=asked.deterministic, **kept
    )
    return dataclasses.replace(row, params=params)


def _unconstrained(row: Row, run: Row) -> Row:
    if not isinstance(row.params, SamplingParams):
        return row
    none: dict[str, Any] = dict.fromkeys(MAX_CONSTRAINT)
    return dataclasses.replace(row, params=dataclasses.replace(row.params, **none))


def _same_mode(row: Row, run: Row) -> Row:
    if not isinstance(row.params, SamplingParams):
        return row
    mode = sampling(run.params).deterministic
    return dataclasses.replace(row, params=dataclasses.replace(row.params, deterministic=mode))


def _same_prompt(row: Row, run: Row) -> Row:
    """Say what the run says: then it is there, and no more."""
    if isinstance(row, PuzzleRow):
        row = dataclasses.replace(row, stranger=False)
    if row.prompt == run.prompt:
        return row
    return dataclasses.replace(row, prompt=run.prompt, repeats=run.target)


def _place(row: Row) -> tuple[Any, ...]:
    """Order runs by target, their neighbours by what they say."""
    return row.arrival, row.target or 0, len(row.prompt), str(row.prompt), str(row.params)


BATCH = Family("batch", "batch size", _fewer)
NEIGHBOURS = Family("neighbours", "neighbours", _rows(_same_prompt))
FAST = Family("mode", "fast neighbours", _rows(_same_mode))

# In the order in which they are taken away.
FAMILIES = (
    BATCH,
    Family(
        "chunk",
        "chunk size",
        _settings(
            max_chunk=lambda bounds: None,
            max_num_batched_tokens=lambda bounds: bounds.max_num_batched_tokens,
        ),
    ),
    Family("waiting", "waiting for slots", _waiting),
    Family("preemption", "preemption", _settings(pages=lambda bounds: None)),
    Family("drafts", "drafts", _settings(max_with_drafts=lambda bounds: None)),
    Family(
        "cache", "cached pages", _settings(cold=lambda bounds: True, shared=lambda bounds: False)
    ),
    Family("pages", "page placement", _settings(page_seed=lambda bounds: None)),
    Family("stale", "stale pages", _settings(spoiled=lambda bounds: False)),
    Family("failures", "a step that failed before", _settings(failed=lambda bounds: False)),
    Family("restart", "restart", _settings(restarted=lambda bounds: False)),
    Family("threads", "threads", _threads),
    Family(
        "arrival",
        "arrival",
        _rows(lambda row, run: dataclasses.replace(row, arrival=0), runs_too=True),
    ),
    Family("abort", "abort", _rows(lambda row, run: dataclasses.replace(row, abort_after=None))),
    Family("asked", "what neighbours ask for", _rows(_plain)),
    Family("grammars", "grammar neighbours", _rows(_unconstrained)),
    FAST,
    NEIGHBOURS,
    Family("slot", "slot", _slot),
    Family("order", "order", _order),
)
NAMES = tuple(family.name for family in FAMILIES)


def named(names: Iterable[str]) -> tuple[Family, ...]:
    """Return families by their names.

    Raises:
        ConfigError: there is none of a name, or no name at all.
    """
    wanted = list(names)
    for name in wanted:
        if name not in NAMES:
            raise ConfigError(f"families: got {name!r}, expected some of {', '.join(NAMES)}")
    if not wanted:
        raise ConfigError(f"families: got none, expected some of {', '.join(NAMES)}")
    return tuple(family for family in FAMILIES if family.name in wanted)


def in_load(load: Load, bounds: Bounds) -> tuple[Family, ...]:
    """Return what a load has."""
    return tuple(family for family in FAMILIES if family.is_in(load, bounds))


def only(load: Load, bounds: Bounds, families: Iterable[Family]) -> Load:
    """Return a load without any other family; its size is left to who draws it."""
    kept = {family.name for family in families}
    for family in FAMILIES:
        if family.name not in kept and family is not BATCH:
            load = family.without(load, bounds)
    return load
