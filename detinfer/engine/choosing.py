"""From a step's logits to each row's tokens and log-probabilities, one row blind to the others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from detinfer import sampling
from detinfer.batch import Batch
from detinfer.engine.outcome import Choice, Outcome
from detinfer.engine.request import Request
from detinfer.engine.scheduler import ScheduledRow
from detinfer.logprobs import TokenLogprob
from detinfer.token_mask import TokenMask

_NOTHING: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)


def read_logits(
    logits: Tensor, batch: Batch, rows: Sequence[ScheduledRow]
) -> list[Outcome | Exception]:
    """Return an outcome for each row, or what its own part in making it raised.

    All rows are read at once. If that fails, each is read alone, which gives the same bits.

    Args:
        logits: of ``batch.logit_rows``. [L, V] float32
        batch: made of ``rows``.
        rows: the step's.
    """
    # Where each row's logits begin: nothing of a request has a say in which are whose.
    edges = np.searchsorted(batch.logit_rows, batch.query_start).tolist()
    try:
        return list(_read(logits, rows, edges))
    except Exception:
        return [
            _read_alone(logits[start:end], row)
            for row, start, end in zip(rows, edges, edges[1:], strict=False)
        ]


def sampling_row(request: Request, guessed: Sequence[int]) -> sampling.SamplingRow:
    """Return how the token after a request's own and ``guessed`` ones is sampled."""
    masked = request.completion_tokens + len(guessed) < request.params.min_tokens
    token_ids = [*request.token_ids, *guessed] if guessed else request.token_ids
    return sampling.SamplingRow(
        params=request.params,
        seed=request.seed or 0,
        position=len(token_ids),
        masked=np.array(sorted(request.stop_ids), dtype=np.int64) if masked else _NOTHING,
        token_ids=token_ids,
        prompt_tokens=request.prompt_tokens,
    )


def _read_alone(logits: Tensor, row: ScheduledRow) -> Outcome | Exception:
    try:
        return _read(logits, [row], [0, len(logits)])[0]
    except Exception as error:
        return error


def _read(logits: Tensor, rows: Sequence[ScheduledRow], edges: Sequence[int]) -> list[Outcome]:
    """Outcomes of rows whose logits are those from one edge to the next."""
    scores = [_score(row, logits, edge) for row, edge in zip(rows, edges, strict=False)]
    starts = [edge + len(row.scored) for row, edge in zip(rows, edges, strict=False)]
    counts = [end - start for start, end in zip(starts, edges[1:], strict=True)]
    if any(row.scored for row in rows):
        ends = zip(starts, edges[1:], strict=True)
        logits = logits[[i for start, end in ends for i in range(start, end)]]
    choices = iter(_choose(logits, rows, counts))
    return [
        Outcome(score, list(itertools.islice(choices, count)))
        for score, count in zip(scores, counts, strict=True)
    ]


def _score(row: ScheduledRow, logits: Tensor, start: int) -> list[TokenLogprob]:
    """Log-probabilities of a row's prompt tokens; its logits begin at row ``start``."""
    if not row.scored:
        return []
    request = row.request
    tokens = [request.token_ids[position + 1] for position in row.scored]
    counts = [request.params.prompt_logprobs] * len(tokens)
    found = sampling.token_logprobs(logits[start : start + len(tokens)], tokens, counts)
    return [one for one in found if one is not None]


def _masks(
    rows: Sequence[ScheduledRow], chosen: Sequence[Sequence[int | None]]
) -> list[list[TokenMask | None]]:
    """Return what may follow each row's last token, and its draft's, where it has to be known.

    Args:
        chosen: at each of a row's places, as ``Constraint.masks`` has it.
    """
    return [
        [None] * len(tokens)
        if row.request.constraint is None or not tokens
        else row.request.constraint.masks(row.draft, tokens)
        for row, tokens in zip(rows, chosen, strict=True)
    ]


def _tokens(
    logits: Tensor,
    best: Sequence[int],
    rows: Sequence[ScheduledRow],
    counts: Sequence[int],
    sampled: Sequence[sampling.SamplingRow],
    bound: Sequence[bool],
) -> list[int]:
    """Return the token chosen from each row of logits, grammars obeyed.

    What is chosen of all tokens, and may come, is what would be chosen of those that may: a mask is
    made where it may not, or where filters have looked at tokens that may not.

    Args:
        counts: rows of logits of each of ``rows``.
        sampled: how each row of logits is.
        bound: whether each is by a grammar.
    """
    if not any(bound):
        return sampling.choose(logits, best, sampled)
    freely = [
        None if is_bound and row.filters else row
        for is_bound, row in zip(bound, sampled, strict=True)
    ]
    tokens = sampling.choose(logits, best, freely)
    chosen = iter(
        None if row is None or token < 0 else token
        for row, token in zip(freely, tokens, strict=True)
    )
    masks = _masks(rows, [list(itertools.islice(chosen, count)) for count in counts])
    masked = [
        None if mask is None else replace(row, allowed=mask)
        for row, mask in zip(sampled, itertools.chain(*masks), strict=True)
    ]
    again = sampling.choose(logits, best, masked)
    return [
        token if row is None else other
        for token, row, other in zip(tokens, masked, again, strict=True)
    ]


def _choose(logits: Tensor, rows: Sequence[ScheduledRow], counts: Sequence[int]) -> list[Choice]:
    """Return a choice from each row of logits, ``counts`` of them for each row of the step."""
    if not len(logits):
        return []
    places = [(row, i) for row, count in zip(rows, counts, strict=True) for i in range(count)]
    # A draft's tokens are judged as if those before them had been chosen.
    sampled = [sampling_row(row.request, row.draft[:i]) for row, i in places]
    bound = [row.request.constraint is not None for row, _ in places]
    logprobs = [row.request.params.logprobs for row, _ in places]
    best, sums = sampling.summarise(logits)
    tokens = _tokens(logits, best, rows, counts, sampled, bound)
    found = sampling.token_logprobs(logits, tokens, logprobs)
    return list(map(Choice, tokens, sums, found))
