"""Loads: what else runs beside the requests under test, drawn anew each time from one seed."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from detinfer.check.target import Prompt, Target
from detinfer.params import SamplingParams

_SHORT, _USUAL, _LONG = 16, 130, 400  # prompt lengths of neighbours, in tokens
_POOL_SIZE = 4096


@dataclass(frozen=True)
class Bounds:
    """What a load may ask of the system it is played on.

    Attributes:
        vocab_size: token ids of neighbours stay below it.
        longest: most tokens of one request, prompt and output together.
        max_rows: most requests in a load.
        allow_fast: whether neighbours may be fast.
        max_num_seqs: the engine's own limit; None if its limits are out of our hands.
        max_num_batched_tokens: as ``max_num_seqs``.
    """

    vocab_size: int
    longest: int
    max_rows: int
    allow_fast: bool
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None


@dataclass(frozen=True)
class Row:
    """One request of a load.

    Attributes:
        target: the number of the target it is a run of; None for a neighbour.
        arrival: steps after the load's start at which it is added.
        abort_after: steps after its arrival at which it is aborted; None lets it finish.
    """

    prompt: Prompt
    params: SamplingParams
    target: int | None = None
    arrival: int = 0
    abort_after: int | None = None


@dataclass(frozen=True)
class Placement:
    """What can be drawn only where the engine is in our own process.

    Attributes:
        max_chunk: most prompt tokens of one request in a step; None leaves it to the budget.
        page_seed: shuffles the free KV pages before the load and at each arrival.
        cold: whether the prefix cache is emptied first.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_chunk: int | None
    page_seed: int
    cold: bool


@dataclass(frozen=True)
class Load:
    """Requests that run together; number 0 is one request alone.

    Attributes:
        rows: in order of arrival; those of the same step in the order they are added.
    """

    number: int
    rows: tuple[Row, ...]
    placement: Placement | None = None

    @classmethod
    def alone(cls, index: int, target: Target) -> Load:
        """One target with nothing beside it: what every run is compared with."""
        return cls(0, (Row(target.prompt, target.params, index),))

    @property
    def targets(self) -> int:
        """How many rows are runs of targets."""
        return sum(row.target is not None for row in self.rows)

    def describe(self) -> dict[str, Any]:
        """Everything that was drawn, as JSON values; prompts of neighbours by their length."""
        return {
            "number": self.number,
            "rows": [_describe_row(row) for row in self.rows],
            "targets": self.targets,
            "neighbours": len(self.rows) - self.targets,
            "placement": self.placement and dataclasses.asdict(self.placement),
        }


def draw_loads(
    targets: Sequence[Target],
    runs: int,
    bounds: Bounds,
    seed: int,
    *,
    deterministic: bool = True,
    fast_neighbours: int = 0,
) -> Iterator[Load]:
    """Draws loads until every target ran ``runs`` times.

    At least half of each load's rows are runs of targets, not counting ``fast_neighbours`` that
    stay from its start. Load k is a function of the arguments alone, and in both modes the same but
    for the mode: no answer influences what is drawn.
    """
    longest = max(target.params.max_tokens or bounds.longest for target in targets)
    left = [runs] * len(targets)
    for number, size in enumerate(_sizes(seed, bounds.max_rows), start=1):
        if not any(left):
            return
        rng = random.Random(f"detinfer check {seed} load {number}")
        wanted = min(rng.randint(-(-size // 2), size), sum(left))
        chosen = rng.sample(range(len(targets)), k=wanted, counts=left)
        spread = rng.choice((0, 0, 4, 16))
        rows = []
        for index in chosen:
            left[index] -= 1
            params = dataclasses.replace(targets[index].params, deterministic=deterministic)
            rows.append(Row(targets[index].prompt, params, index, rng.randint(0, spread)))
        for _ in range(min(size - wanted, wanted)):
            rows.append(_draw_neighbour(rng, bounds, spread, deterministic))
        for _ in range(fast_neighbours):
            rows.append(_stay_fast(_draw_neighbour(rng, bounds, spread, False), longest, bounds))
        rng.shuffle(rows)
        rows.sort(key=lambda row: row.arrival)
        yield Load(number, tuple(rows), _draw_placement(rng, bounds, len(rows)))


def _sizes(seed: int, largest: int) -> Iterator[int]:
    """The largest, so that what can fail fails early; every other size; then mostly large ones.

    Small loads cost several times as much a token as large ones.
    """
    rng = random.Random(f"detinfer check {seed} sizes")
    yield largest
    yield from rng.sample(range(1, largest), k=largest - 1)
    upper = range(largest // 2 + 1, largest + 1)
    while True:
        yield from rng.sample(upper, len(upper))


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


def _stay_fast(row: Row, max_tokens: int, bounds: Bounds) -> Row:
    """A fast neighbour that is there first and generates for as long as the targets do."""
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


def _describe_row(row: Row) -> dict[str, Any]:
    defaults = SamplingParams()
    params = {
        field.name: getattr(row.params, field.name)
        for field in dataclasses.fields(row.params)
        if getattr(row.params, field.name) != getattr(defaults, field.name)
    }
    if row.target is not None:
        what: dict[str, Any] = {"target": row.target}
    else:
        what = {"prompt_tokens": len(row.prompt), "abort_after": row.abort_after}
    return {**what, "arrival": row.arrival, "params": params}
