"""One vector of a prompt: its final hidden states, pooled (arithmetic contract, rule 10)."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detinfer import ops
from detinfer.batch import Batch
from detinfer.params import PoolingParams

Floats = npt.NDArray[np.float32]
NO_STATES: Floats = np.empty((0, 0), np.float32)


class Pool:
    """What of a prompt's hidden states has come so far.

    Args:
        params: how they are pooled.
        prompt_tokens: how many there will be.
    """

    def __init__(self, params: PoolingParams, prompt_tokens: int) -> None:
        self._params = params
        self._prompt_tokens = prompt_tokens
        self._next = 0 if params.pooling == "mean" else prompt_tokens - 1  # position to come
        self._total: Floats | None = None

    def wanted(self, start: int, stop: int) -> range:
        """Return the positions from ``start`` to ``stop`` whose states are still to be added."""
        first = max(start, self._next)
        return range(first, max(stop, first))

    def add(self, states: Floats) -> None:
        """Add the states of the wanted positions, ascending. [N, D]."""
        for state in states:  # not np.sum: the contract's sums run in order, one addition a step
            self._total = state.copy() if self._total is None else self._total + state
        self._next += len(states)

    def vector(self) -> Floats:
        """Return the embedding, once all states have been added."""
        assert self._total is not None, "no state was added"
        assert self._next == self._prompt_tokens, "not all states were added"
        params, vector = self._params, self._total
        if params.pooling == "mean":
            vector = vector / np.float32(self._prompt_tokens)
        vector = vector[: params.dimensions]
        if params.normalize:
            with ops.use(ops.PORTABLE):  # on the host, whatever the profile
                row = torch.from_numpy(np.ascontiguousarray(vector))
                scaled: Floats = ops.rms_norm(row, None, 0.0, "scale_rounded").numpy()
            vector = scaled / np.sqrt(np.float32(vector.size))
        return vector


def states_of_rows(hidden: Tensor, batch: Batch) -> list[Floats]:
    """Return each sequence's own of the states of ``batch.hidden_rows`` [H, D], on the host."""
    # Where each begins: nothing of a request has a say in which are whose.
    edges = np.searchsorted(batch.hidden_rows, batch.query_start).tolist()
    states: Floats = hidden.cpu().numpy()
    return [states[start:end] for start, end in itertools.pairwise(edges)]
