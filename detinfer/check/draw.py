"""Draws loads, each time anew, from one seed."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Iterator, Sequence

from detinfer.check.load import Load, Placement, Row
from detinfer.check.target import Bounds, Target
from detinfer.params import SamplingParams

_SHORT, _USUAL, _LONG = 16, 130, 400  # prompt lengths of neighbours, in tokens
_POOL_SIZE = 4096
_COSTLY_EVERY, _COSTLY_AT_ONCE = 16, 4  # loads, and runs of one target in such a load
_LEAD = 4  # most steps that a forerunner has to itself


def draw_loads(
    targets: Sequence[Target],
    runs: int,
    bounds: Bounds,
    seed: int,
    *,
    deterministic: bool = True,
    fast_neighbours: int = 0,
) -> Iterator[Load]:
    """Draw loads until every target ran its share of ``runs`` times.

    At least half of each load's rows are runs of targets, not counting ``fast_neighbours`` that
    stay from its start. Some begin with a forerunner: a fast request of a target's own prompt, with
    the first steps to itself, so that stock kernels fill pages of the very same tokens.
    Load k is a function of the arguments alone, and in both modes the same but for the mode: no
    answer influences what is drawn.
    """
    longest = max(target.params.max_tokens or bounds.longest for target in targets)
    left = [target.runs_of(runs) for target in targets]
    cheap = [target.share >= 1 for target in targets]
    for number, size in enumerate(sizes(seed, bounds.max_rows), start=1):
        if not any(left):
            return
        rng = random.Random(f"detinfer check {seed} load {number}")
        most = rng.randint(-(-size // 2), size)
        chosen = take_targets(rng, left, cheap, most, number % _COSTLY_EVERY == 1)
        neighbours = min(size - len(chosen), len(chosen))
        spread = rng.choice((0, 0, 4, 16))
        rows = []
        for index in chosen:
            params = dataclasses.replace(targets[index].params, deterministic=deterministic)
            rows.append(Row(targets[index].prompt, params, index, rng.randint(0, spread)))
        placement = _draw_placement(rng, bounds, len(rows) + neighbours + fast_neighbours)
        # In a warm prefix cache the pages of a target's tokens have their names already.
        cold = placement is None or placement.cold
        possible = neighbours and cold and bounds.allow_fast and any(cheap)
        forerunner = bool(possible) and rng.random() < 0.5
        for _ in range(neighbours - forerunner):
            rows.append(_draw_neighbour(rng, bounds, spread, deterministic))
        if forerunner:
            lead = rng.randint(1, _LEAD)
            rows = [dataclasses.replace(row, arrival=row.arrival + lead) for row in rows]
            rows.append(_draw_forerunner(rng, targets))
        for _ in range(fast_neighbours):
            rows.append(_stay_fast(_draw_neighbour(rng, bounds, spread, False), longest, bounds))
        rng.shuffle(rows)
        rows.sort(key=lambda row: row.arrival)
        yield Load(number, tuple(rows), placement)


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


def _draw_forerunner(rng: random.Random, targets: Sequence[Target]) -> Row:
    """Return a fast request of a target's prompt, there from the load's first step.

    The longer a prompt, the more whole pages it has to give away; the costly ones are left out.
    """
    weights = [len(target.prompt) if target.share >= 1 else 0 for target in targets]
    [index] = rng.choices(range(len(targets)), weights)
    params = dataclasses.replace(targets[index].params, deterministic=False)
    return Row(targets[index].prompt, params, repeats=index)


def _stay_fast(row: Row, max_tokens: int, bounds: Bounds) -> Row:
    """Return a fast neighbour that is there first and generates for as long as the targets do."""
    max_tokens = min(max_tokens, bounds.longest - len(row.prompt))
    params = dataclasses.replace(row.params, max_tokens=max_tokens, min_tokens=0, ignore_eos=True)
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


@functools.cache
def _pool(vocab_size: int) -> tuple[int, ...]:
    rng = random.Random("detinfer check pool")
    return tuple(rng.randrange(vocab_size) for _ in range(_POOL_SIZE))
