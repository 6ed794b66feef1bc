"""A difference made small, in lines of words: for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator

from detinfer.check.answer import Answer
from detinfer.check.load import that_were_set
from detinfer.check.shrink import BEFORE, Shrunk


def shrunk_lines(shrunk: Shrunk) -> Iterator[str]:
    """Yield what is left of the load, and what it needs to differ."""
    families, rows = " and ".join(shrunk.families), shrunk.load.rows
    if shrunk.families == (BEFORE,):
        yield f"the load played again does not differ: it takes {BEFORE}"
        if shrunk.parting is not None:
            yield from (f"  {line}" for line in shrunk.parting.lines)
        return
    count = f"{len(rows)} request{'s' if len(rows) > 1 else ''}"
    yield f"it takes {families}: made small, {count} in {shrunk.plays} plays, it still differs"
    for number, row in enumerate(rows, 1):
        what = "the run" if number == shrunk.row + 1 else "beside it"
        asked = ", ".join(f"{name} {value}" for name, value in that_were_set(row.params).items())
        size = f"{len(row.prompt)} {'characters' if isinstance(row.prompt, str) else 'tokens'}"
        after = f", after {row.arrival} steps" if row.arrival else ""
        yield f"  {number}: {what}, {size}{after}; {asked}"
    if shrunk.load.placement is not None:
        yield f"  {shrunk.load.placement.told}"
    position = (
        None if shrunk.expected == shrunk.got else shrunk.expected.first_difference(shrunk.got)
    )
    yield f"  alone:       {answer_line(shrunk.expected, position)}"
    yield f"  in the load: {answer_line(shrunk.got, position)}"
    if shrunk.parting is not None:
        yield from (f"  {line}" for line in shrunk.parting.lines)


def answer_line(answer: Answer, position: int | None) -> str:
    """Return an answer in a line, and what it has at a position."""
    token = answer.token_at(position)
    shown = "" if position is None else f"{answer.unit} {'none' if token is None else token}, "
    return f"{shown}digest {answer.digest[:16]}, {answer.text!r}"
