"""Draws loads, each time anew, from one seed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from detinfer.check.families import BATCH, FAMILIES, NEIGHBOURS, Family, only
from detinfer.check.grammars import draw_constraint
from detinfer.check.load import Load, Placement, Row
from detinfer.check.target import Bounds, Target, sampling
from detinfer.config import pages_for
from detinfer.params import SamplingParams

_SHORT, _USUAL, _LONG = 16, 130, 400  # prompt lengths of neighbours, in tokens
_POOL_SIZE = 4096
_COSTLY_EVERY, _COSTLY_AT_ONCE = 16, 4  # loads, and runs of one target in such a load
_LEAD = 4  # most steps that a forerunner has to itself
_CONSTRAINED_EVERY = 4  # neighbours
# Shares of the loads.
_SCARCE, _DRAFTS, _THREADS, _STALE, _FAILED, _RESTARTED = 0.15, 0.2, 0.2, 0.2, 0.1, 0.02


def draw_loads(
    targets: Sequence[Target],
    runs: int | Sequence[int],
    bounds: Bounds,
    seed: int,
    *,
    deterministic: bool = True,
    fast_neighbours: int = 0,
    families: Sequence[Family] = FAMILIES,
) -> Iterator[Load]:
    """Draw loads until every target ran its share of ``runs`` times, or as often as they say.

    At least half of each load's rows are runs of targets, not counting ``fast_neighbours`` that
    stay from its start. Some begin with a forerunner: a fast request of a target's own prompt, with
    the first steps to itself, so that stock kernels fill pages of the very same tokens.
    Load k is a function of the arguments alone, and in both modes the same but for the mode: no
    answer influences what is drawn. Families that are left out are taken away from what is drawn.
    """
    left = [target.runs_of(runs) for target in targets] if isinstance(runs, int) else list(runs)
    # Without neighbours a load is of one target alone.
    turns = [left] if NEIGHBOURS in families else each_alone(left)
    largest = bounds.max_rows if BATCH in families else 1
    numbers = itertools.count(1)
    for turn in turns:
        for size in sizes(seed, largest):
            if not any(turn):
                break
            number = next(numbers)
            rng = random.Random(f"detinfer check {seed} load {number}")
            load = _draw_load(
                rng, targets, turn, size, number, bounds, deterministic, fast_neighbours
            )
            more = random.Random(f"detinfer check {seed} placement of load {number}")
            yield only(_place_more(more, load, bounds), bounds, families)


def each_alone(left: list[int]) -> list[list[int]]:
    """Return the runs that are left of one target after the other, the others having none."""
    return [
        [count if at == one else 0 for at, count in enumerate(left)] for one in range(len(left))
    ]


def _draw_load(
    rng: random.Random,
    targets: Sequence[Target],
    left: list[int],
    size: int,
    number: int,
    bounds: Bounds,
    deterministic: bool,
    fast_neighbours: int,
) -> Load:
    longest = max(sampling(target.params).max_tokens or bounds.longest for target in targets)
    cheap = [target.share >= 1 for target in targets]
    most = rng.randint(-(-size // 2), size)
    chosen = take_targets(rng, left, cheap, most, number % _COSTLY_EVERY == 1)
    neighbours = min(size - len(chosen), len(chosen))
    spread = rng.choice((0, 0, 4, 16))
    rows = []
    for index in chosen:
        params = dataclasses.replace(sampling(targets[index].params), deterministic=deterministic)
        rows.append(Row(targets[index].prompt, params, index, rng.randint(0, spread)))
    placement = _draw_placement(rng, bounds, len(rows) + neighbours + fast_neighbours)
    # In a warm prefix cache the pages of a target's tokens have their names already.
    cold = placement is None or placement.cold
    possible = neighbours and cold and bounds.allow_fast and any(cheap)
    forerunner = bool(possible) and rng.random() < 0.5
    for _ in range(neighbours - forerunner):
        rows.append(_constrained(_draw_neighbour(rng, bounds, spread, deterministic), bounds))
    if forerunner:
        lead = rng.randint(1, _LEAD)
        rows = [dataclasses.replace(row, arrival=row.arrival + lead) for row in rows]
        rows.append(_draw_forerunner(rng, targets))
    for _ in range(fast_neighbours):
        rows.append(_stay_fast(_draw_neighbour(rng, bounds, spread, False), longest, bounds))
    rng.shuffle(rows)
    rows.sort(key=lambda row: row.arrival)
    return Load(number, tuple(rows), placement)


def sizes(seed: int, largest: int) -> Iterator[int]:
    """Yield the largest, so that what can fail fails early; all others; then mostly large ones.

    Small loads cost several times as much a token as large ones.
    """
    rng = random.Random(f"detinfer check {seed} sizes")
    yield largest
    yield from rng.sample(range(1, largest), k=largest - 1)
    upper = range(largest // 2 + 1, largest + 1)
    while True:
        yield from rng.sample(upper, len(upper))


def take_targets(
    rng: random.Random, left: list[int], cheap: Sequence[bool], most: int, turn: bool
) -> list[int]:
    """Take targets from those ``left``, fewer than ``most`` only if no cheap ones are.

    The costly ones come in turn, several at once: they share their pages.
    """
    counts = [count if one else 0 for count, one in zip(left, cheap, strict=True)]
    chosen: list[int] = []
    if turn or not any(counts):
        costly = [index for index, one in enumerate(cheap) if not one]
        for index in costly:
            chosen += [index] * min(left[index], rng.randint(1, _COSTLY_AT_ONCE))
    chosen = chosen[:most]
    if any(counts):
        k = min(most - len(chosen), sum(counts))
        chosen += rng.sample(range(len(left)), k=k, counts=counts)
    for index in chosen:
        left[index] -= 1
    return chosen


def _draw_neighbour(rng: random.Random, bounds: Bounds, spread: int, deterministic: bool) -> Row:
    length = rng.choices(
        (rng.randint(1, _SHORT), rng.randint(1, _USUAL), rng.randint(_USUAL, _LONG)), (14, 5, 1)
    )[0]
    max_tokens = rng.randint(1, min(32, max(1, bounds.longest - 1)))
    length = max(1, min(length, bounds.longest - max_tokens))
    pool = _pool(bounds.vocab_size)
    start = rng.randrange(len(pool) - length)
    fast = rng.random() < 0.125 and bounds.allow_fast
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=rng.choice((0.0, 0.0, 0.7, 1.5)),
        top_k=rng.choice((0, 0, 1, 5, 50)),
        top_p=rng.choice((1.0, 1.0, 1.0, 0.9)),
        min_p=rng.choice((0.0, 0.0, 0.05)),
        seed=rng.getrandbits(64),
        ignore_eos=rng.random() < 0.5,
        min_tokens=rng.choice((0, 0, max_tokens)),
        logprobs=rng.choice((None, None, 0, 5)),
        deterministic=deterministic and not fast,
    )
    aborted = rng.random() < 0.25
    return Row(
        prompt=pool[start : start + length],
        params=params,
        arrival=rng.randint(0, spread),
        abort_after=rng.randint(0, 12) if aborted else None,
    )


def _constrained(row: Row, bounds: Bounds) -> Row:
    """Return a neighbour, in some of the cases with a grammar of its own: by its seed alone."""
    params = sampling(row.params)
    if not bounds.can_constrain or (params.seed or 0) % _CONSTRAINED_EVERY:
        return row
    constraint: dict[str, Any] = draw_constraint(params.seed)
    return dataclasses.replace(row, params=dataclasses.replace(params, **constraint))


def _draw_forerunner(rng: random.Random, targets: Sequence[Target]) -> Row:
    """Return a fast request of a target's prompt, there from the load's first step.

    The longer a prompt, the more whole pages it has to give away; the costly ones are left out.
    """
    weights = [len(target.prompt) if target.share >= 1 else 0 for target in targets]
    [index] = rng.choices(range(len(targets)), weights)
    params = dataclasses.replace(sampling(targets[index].params), deterministic=False)
    return Row(targets[index].prompt, params, repeats=index)


def _stay_fast(row: Row, max_tokens: int, bounds: Bounds) -> Row:
    """Return a fast neighbour that is there first and generates for as long as the targets do."""
    max_tokens = min(max_tokens, bounds.longest - len(row.prompt))
    params = dataclasses.replace(
        sampling(row.params), max_tokens=max_tokens, min_tokens=0, ignore_eos=True
    )
    return dataclasses.replace(row, params=params, arrival=0, abort_after=None)


def _draw_placement(rng: random.Random, bounds: Bounds, size: int) -> Placement | None:
    if bounds.max_num_seqs is None or bounds.max_num_batched_tokens is None:
        return None
    together = size if rng.random() < 0.75 else rng.randint(-(-size // 2), size)
    most = bounds.max_num_batched_tokens
    # Half the loads run as users do. Below that, even odds for each power of two: small budgets
    # are as telling as large ones, and slow.
    least = math.log2(min(most, max(2, size // 2)))
    small = min(most, round(2 ** rng.uniform(least, math.log2(most))))
    return Placement(
        max_num_seqs=min(together, bounds.max_num_seqs),
        max_num_batched_tokens=rng.choice((most, small)),
        max_chunk=rng.choice((None, rng.randint(1, _USUAL))),
        page_seed=rng.getrandbits(32),
        cold=rng.random() < 0.5,
    )


def _place_more(rng: random.Random, load: Load, bounds: Bounds) -> Load:
    """Draw what else an engine of our own may be made to do, each in some of the loads."""
    placement = load.placement
    if not isinstance(placement, Placement):
        return load
    if bounds.num_pages is not None and rng.random() < _SCARCE:
        wanted = [pages_for(longest_of(row, bounds)) for row in load.rows]
        few = rng.randint(max(wanted), max(*wanted, sum(wanted) // 2))
        if few < min(sum(wanted), bounds.num_pages):
            placement = dataclasses.replace(placement, pages=few)
    if rng.random() < _DRAFTS:
        placement = dataclasses.replace(placement, max_with_drafts=rng.choice((0, 2, 16, 64)))
    if bounds.threads is not None and bounds.threads > 1 and rng.random() < _THREADS:
        placement = dataclasses.replace(placement, threads=rng.randint(1, bounds.threads))
    placement = dataclasses.replace(
        placement,
        spoiled=rng.random() < _STALE and bounds.can_spoil,
        failed=rng.random() < _FAILED,
        restarted=rng.random() < _RESTARTED and bounds.can_restart,
    )
    return dataclasses.replace(load, placement=placement)


def longest_of(row: Row, bounds: Bounds) -> int:
    """Return the most tokens a request may come to: a text has at most a token a byte, and two."""
    prompt = len(row.prompt.encode()) + 2 if isinstance(row.prompt, str) else len(row.prompt)
    return min(bounds.longest, prompt + (sampling(row.params).max_tokens or bounds.longest))


@functools.cache
def _pool(vocab_size: int) -> tuple[int, ...]:
    rng = random.Random("detinfer check pool")
    return tuple(rng.randrange(vocab_size) for _ in range(_POOL_SIZE))
