"""Choosing tokens from logits (arithmetic contract, rules 6 to 8), one row blind to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detinfer import ops
from detinfer.kernels.cpu.sampling import draw_rows, gumbel_argmax, nucleus, rank_keys, weights
from detinfer.logprobs import TokenLogprob
from detinfer.params import SamplingParams, is_greedy
from detinfer.token_mask import TokenMask, allows

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


def is_adjusted(params: SamplingParams) -> bool:
    """Return whether a bias or a penalty changes the logits first."""
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1
        or params.frequency_penalty
        or params.presence_penalty
    )


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """How one row of logits is sampled.

    Attributes:
        seed: key of the noise, 64 bits; not read for a greedy row.
        position: absolute index in its sequence of the token to choose.
        masked: token ids that cannot be chosen; those outside the vocabulary mask nothing.
            [M] int64
        token_ids: its own prompt and output so far; read only for penalties.
        prompt_tokens: how many of them are the prompt.
        allowed: what a grammar lets follow; None lets all. [ceil(V / 8)]
    """

    params: SamplingParams
    seed: int
    position: int
    masked: Ids
    token_ids: Sequence[int] = ()
    prompt_tokens: int = 0
    allowed: TokenMask | None = None

    @property
    def filters(self) -> bool:
        """Whether top-k, top-p or min-p looks at other tokens than the one that is chosen."""
        params = self.params
        return bool(params.top_k or params.top_p < 1 or params.min_p > 0) and not is_greedy(params)

    @property
    def only_draws(self) -> bool:
        """Whether nothing but its temperature and the noise has a say."""
        masks = self.allowed is not None or len(self.masked)
        changed = masks or self.filters or is_adjusted(self.params)
        return not changed and not is_greedy(self.params)

    def takes(self, best: int) -> bool:
        """Whether its token is ``best``, the argmax of the raw logits."""
        return (
            is_greedy(self.params)
            and not is_adjusted(self.params)
            and not len(self.masked)
            and (self.allowed is None or allows(self.allowed, best))
        )


def summarise(logits: Tensor) -> tuple[list[int], list[tuple[int, int]]]:
    """Return each row's argmax, -1 where a logit is NaN or +Inf, and the sums of its checksum.

    Args:
        logits: raw logits, on any device. [L, V] float32
    """
    best, sums = ops.summarise(logits)
    return best.tolist(), [(int(a), int(b)) for a, b in sums.tolist()]


def choose(logits: Tensor, best: Sequence[int], rows: Sequence[SamplingRow | None]) -> list[int]:
    """Choose one token a row.

    Args:
        logits: raw logits, on any device. [L, V] float32
        best: of ``summarise``. L of them
        rows: how each is sampled; None: it is not, and gives its ``best``. L of them

    Returns:
        Token ids: -1 where ``best`` is, or where the largest logit to choose from, adjusted and
        over the temperature, is not finite; one whose logit is -Inf is never chosen.
    """
    tokens = list(best)
    others = {
        i: row
        for i, row in enumerate(rows)
        if row is not None and tokens[i] >= 0 and not row.takes(tokens[i])
    }
    drawing = {i: row for i, row in others.items() if row.only_draws}
    for i, token in zip(drawing, _draw(logits, drawing), strict=True):
        tokens[i] = token
    others = {i: row for i, row in others.items() if i not in drawing}
    for (i, row), values in zip(others.items(), _on_host(logits, list(others)), strict=True):
        tokens[i] = _choose_one(values, row)
    return tokens


def prepare(profile: ops.Profile) -> None:
    """Have what chooses tokens compiled at load: the first request that samples does not wait."""
    nothing = np.empty(0, dtype=np.int64)
    plain = SamplingParams(temperature=1.0)
    kinds = (plain, replace(plain, top_k=2), replace(plain, top_p=0.5))
    rows = [SamplingRow(params, 0, 0, nothing) for params in kinds]
    with ops.use(profile):
        logits = torch.zeros(len(rows), 4, device=ops.device())
        choose(logits, summarise(logits)[0], rows)
        token_logprobs(logits, [0], [1])


def _on_host(logits: Tensor, rows: list[int]) -> Sequence[Floats]:
    """Return some rows of the logits as arrays; one transfer where they are on a device."""
    if not rows:
        return ()
    if logits.device.type == "cpu":
        return [logits[i].numpy() for i in rows]
    chosen: Floats = logits[rows].cpu().numpy()
    return list(chosen)


def _draw(logits: Tensor, drawing: Mapping[int, SamplingRow]) -> list[int]:
    """Draw tokens from rows of the logits, by their indices, at once and by all cores."""
    if not drawing:
        return []
    places, rows = list(drawing), list(drawing.values())
    here = logits.device.type == "cpu"
    tokens = np.empty(len(rows), np.int64)
    draw_rows(
        np.ascontiguousarray((logits if here else logits[places].cpu()).numpy()),
        np.array(places if here else range(len(rows)), np.int64),
        np.array([row.params.temperature for row in rows], np.float32),
        np.array([row.seed for row in rows], np.uint64),
        np.array([row.position for row in rows], np.uint64),
        tokens,
    )
    return list(map(int, tokens))


def _choose_one(logits: Floats, row: SamplingRow) -> int:
    params = row.params
    if is_adjusted(params):
        logits = _adjust(logits, row)
    ids = _candidates(row, len(logits))
    if not len(ids):
        return -1
    if len(ids) < len(logits):
        logits = logits[ids]
    if is_greedy(params):
        best = logits.argmax()
        return int(ids[best]) if np.isfinite(logits[best]) else -1
    with np.errstate(over="ignore"):
        x = logits / np.float32(params.temperature)
    if not np.isfinite(x.max()):
        return -1
    if params.top_k or params.top_p < 1 or params.min_p > 0:
        kept = _filter(x, params)
        x, ids = x[kept], ids[kept]
    return int(gumbel_argmax(x, ids, np.uint64(row.seed), np.uint64(row.position)))


def _candidates(row: SamplingRow, vocab: int) -> Ids:
    """Return the tokens to choose from, ascending; none if a grammar lets none follow."""
    ids: Ids
    if row.allowed is None:
        ids = _all(vocab)
    else:
        ids = np.flatnonzero(np.unpackbits(row.allowed, count=vocab, bitorder="little").view(bool))
    if len(row.masked):
        kept = np.setdiff1d(ids, row.masked, assume_unique=True)
        # Where a grammar is at its end nothing else can follow, however few tokens there are.
        ids = ids if row.allowed is not None and not len(kept) else kept
    return ids


@lru_cache(maxsize=4)
def _all(vocab: int) -> Ids:
    return np.arange(vocab, dtype=np.int64)  # half a megabyte, for each row anew, takes a while


def _adjust(logits: Floats, row: SamplingRow) -> Floats:
    """Copy the logits with the request's bias and penalties, in the contract's order."""
    params, x = row.params, logits.copy()
    if params.logit_bias:
        bias = dict(params.logit_bias)
        ids = _known(np.array(list(bias), dtype=np.int64), len(x))
        x[ids] += np.array([bias[token] for token in ids.tolist()], dtype=np.float32)
    if params.repetition_penalty != 1:
        # A repeated id is set twice, to one value.
        seen = _known(np.array(row.token_ids, dtype=np.int64), len(x))
        old, penalty = x[seen], np.float32(params.repetition_penalty)
        with np.errstate(over="ignore"):
            x[seen] = np.where(old > 0, old / penalty, old * penalty)
    if params.frequency_penalty or params.presence_penalty:
        output = np.array(row.token_ids[row.prompt_tokens :], dtype=np.int64)
        ids, counts = np.unique(_known(output, len(x)), return_counts=True)
        x[ids] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
        x[ids] -= np.float32(params.presence_penalty)
    return x


def _known(ids: Ids, vocab: int) -> Ids:
    """Those that are tokens: NumPy counts negative ids from the end, and raises at large ones."""
    return ids[(ids >= 0) & (ids < vocab)]


def _filter(x: Floats, params: SamplingParams) -> Ids:
    """Return indices that top-k, top-p and min-p keep, those of the likeliest tokens first.

    Where top-p is 1 it would only drop what adds nothing to the sum, and so cannot win: then no
    more is ranked than top-k needs.
    """
    if params.top_k or params.top_p < 1:
        order = rank(x, params.top_k)
        w = weights(x[order], x[order[0]])
    else:
        order, w = _all(len(x)), weights(x, x.max())
    if params.top_p < 1:
        count = nucleus(w, params.top_p)
        order, w = order[:count], w[:count]
    kept: Ids = order[w >= np.float32(params.min_p)]
    return kept


def rank(x: Floats, k: int = 0) -> Ids:
    """Return indices of the k largest values (0: of all), descending, ties to the lowest index."""
    ids = _all(len(x))
    if 0 < k < len(x):
        ids = np.flatnonzero(x >= np.partition(x, -k)[-k])  # a few more than k, if values repeat
    keys: npt.NDArray[np.uint64] = rank_keys(x, ids)
    keys.sort()
    return (keys[: k or None] & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _place(x: Floats, index: int) -> int:
    """Return where ``rank`` has an index, counted from 1."""
    value = x[index]
    return 1 + int(np.count_nonzero(x > value) + np.count_nonzero(x[:index] == value))


def token_logprobs(
    logits: Tensor, tokens: list[int], counts: list[int | None]
) -> list[TokenLogprob | None]:
    """Log-probabilities under the raw logits, for the rows that ask.

    Args:
        logits: raw logits. [L, V] float32
        tokens: the chosen token ids, -1 for a row without one. L of them
        counts: how many of the likeliest tokens each row wants; None for no log-probabilities.
    """
    found: list[TokenLogprob | None] = [None] * len(tokens)
    asking = [i for i, count in enumerate(counts) if count is not None and tokens[i] >= 0]
    if not asking:
        return found
    table: Floats = ops.log_softmax(logits[asking]).cpu().numpy()
    for i, row, values in zip(asking, table, _on_host(logits, asking), strict=True):
        token, count = tokens[i], counts[i] or 0
        top = [(int(t), float(row[t])) for t in rank(values, count)] if count else []
        found[i] = TokenLogprob(token, float(row[token]), top, _place(values, token))
    return found
