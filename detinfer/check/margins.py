"""How far ahead the likeliest token of each position was: where it is not, little can part answers.

Every prompt is asked alone once more, for the two likeliest tokens of each position.
"""

from __future__ import annotations

import dataclasses

from detinfer.check.answer import Answer
from detinfer.check.runner import Check
from detinfer.check.target import sampling
from detinfer.errors import DetinferError
from detinfer.params import SamplingParams

Margins = tuple[float, ...]


def margins_of(answer: Answer) -> Margins | None:
    """Return the differences of the two largest log-probabilities; None if they were not told."""
    if not answer.logprobs or any(len(one.top) < 2 for one in answer.logprobs):
        return None
    return tuple(float.fromhex(one.top[0][1]) - float.fromhex(one.top[1][1])
                 for one in answer.logprobs)  # fmt: skip


def add_margins(check: Check) -> None:
    """Put them into what a check found, where its subject tells them."""
    judged = check.found().judged
    for prompt in judged.prompts:
        prompt.margins = margins_of(prompt.expected)
        if prompt.margins is not None or not isinstance(prompt.target.params, SamplingParams):
            continue
        _, alone = check.single(check.modes[0], prompt.number)
        [row] = alone.rows
        params = dataclasses.replace(sampling(row.params), logprobs=2)
        asking = dataclasses.replace(row, params=params)
        try:
            [answer] = check.subject.play(dataclasses.replace(alone, rows=(asking,))).values()
        except DetinferError:
            continue  # a server that tells none
        prompt.margins = margins_of(answer)
