"""Loads: what else runs beside the requests under test, and what it may ask for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from detinfer.check.target import Params, Prompt, Target


@dataclass(frozen=True)
class Row:
    """One request of a load.

    Attributes:
        params: of the kind that its engine takes.
        target: the number of the target it is a run of; None for a neighbour.
        arrival: steps after the load's start at which it is added.
        abort_after: steps after its arrival at which it is aborted; None lets it finish.
        repeats: the number of the target that a neighbour repeats, None if it has its own prompt.
    """

    prompt: Prompt
    params: Params
    target: int | None = None
    arrival: int = 0
    abort_after: int | None = None
    repeats: int | None = None


@dataclass(frozen=True)
class PuzzleRow(Row):
    """One puzzle of a load.

    Attributes:
        stranger: whether it is one of another task's, and another model's.
    """

    stranger: bool = False


@dataclass(frozen=True)
class Placement:
    """What can be drawn only where the engine is in our own process.

    Attributes:
        max_chunk: most prompt tokens of one request in a step; None leaves it to the budget.
        page_seed: shuffles the free KV pages before the load and at each arrival; None puts
            them in order.
        cold: whether the prefix cache is emptied first.
        pages: KV pages that the load may use, None for all: with few, requests are sent back.
        max_with_drafts: tokens up to which drafts may fill a step; None leaves it as it is.
        threads: of its steps; None leaves them as they are.
        spoiled: whether free pages hold NaN: who reads what nobody has written shows it.
        failed: whether a step fails just before.
        restarted: whether the engine was made anew.
        shared: whether its requests share pages of the prefix cache, with each other and with what
            came before.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_chunk: int | None
    page_seed: int | None
    cold: bool
    pages: int | None = None
    max_with_drafts: int | None = None
    threads: int | None = None
    spoiled: bool = False
    failed: bool = False
    restarted: bool = False
    shared: bool = True

    @property
    def told(self) -> str:
        """Return it in words."""
        words = [f"a step: at most {self.max_num_seqs} sequences"]
        words.append(f"{self.max_num_batched_tokens} tokens")
        if self.max_chunk is not None:
            words.append(f"{self.max_chunk} prompt tokens of one request")
        if self.max_with_drafts is not None:
            words.append(f"{self.max_with_drafts} tokens with drafts")
        if self.threads is not None:
            words.append(f"{self.threads} threads")
        if self.pages is not None:
            words.append(f"{self.pages} KV pages in all")
        if self.cold:
            words.append("from an empty prefix cache")
        if not self.shared:
            words.append("without the prefix cache")
        if self.spoiled:
            words.append("free pages hold NaN")
        if self.failed:
            words.append("after a step that failed")
        if self.restarted:
            words.append("by an engine made anew")
        return ", ".join(words)


@dataclass(frozen=True)
class SolverPlacement:
    """How a load of puzzles is stepped.

    Attributes:
        deterministic: whether by the contract's kernels.
        max_batch: most runs in a step of a model; None leaves it to the server.
        threads: likewise.
    """

    deterministic: bool
    max_batch: int | None = None
    threads: int | None = None

    @property
    def told(self) -> str:
        """Return it in words."""
        words = [] if self.max_batch is None else [f"at most {self.max_batch} runs"]
        words += [] if self.threads is None else [f"{self.threads} threads"]
        return f"a step: {', '.join(words) or 'as the server has it'}"


@dataclass(frozen=True)
class Load:
    """Requests that run together; number 0 is one request alone.

    Attributes:
        rows: in order of arrival; those of the same step in the order they are added.
    """

    number: int
    rows: tuple[Row, ...]
    placement: Placement | SolverPlacement | None = None

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


def that_were_set(params: Params) -> dict[str, Any]:
    """Return the fields of a dataclass that are not its defaults."""
    defaults = type(params)()
    return {
        field.name: getattr(params, field.name)
        for field in dataclasses.fields(params)
        if getattr(params, field.name) != getattr(defaults, field.name)
    }


def _describe_row(row: Row) -> dict[str, Any]:
    if row.target is not None:
        what: dict[str, Any] = {"target": row.target}
    elif row.repeats is not None:
        what = {"repeats": row.repeats}
    else:
        what = {"prompt_tokens": len(row.prompt), "abort_after": row.abort_after}
    return {**what, "arrival": row.arrival, "params": that_were_set(row.params)}
