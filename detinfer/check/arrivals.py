"""A load over HTTP: each row from a client of its own, when it is to arrive."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from detinfer.check.answer import Answer
from detinfer.check.load import Load, Row

TRIES = 3  # see ``Subject.tries``: two in three may miss each other on a busy machine
_STEP = 0.02  # seconds that stand for one step between arrivals


def answers(load: Load, ask: Callable[[Row], Answer | None]) -> dict[int, Answer]:
    """Return what each row was answered, by its place; rows without an answer are left out."""
    start = time.monotonic()

    def one(row: Row) -> Answer | None:
        time.sleep(max(0.0, start + row.arrival * _STEP - time.monotonic()))
        return ask(row)

    with ThreadPoolExecutor(len(load.rows), thread_name_prefix="check") as pool:
        found = list(pool.map(one, load.rows))
    return {place: answer for place, answer in enumerate(found) if answer is not None}
