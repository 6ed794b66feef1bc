"""One step's work, as the model runner sees it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Rows of several sequences, flattened; R sequences, T tokens.

    Attributes:
        input_ids: token ids, sequence after sequence. [T] int32
        positions: absolute position of each token in its sequence. [T] int32
        query_start: sequence r's tokens are ``query_start[r]:query_start[r + 1]``. [R + 1] int32
        block_tables: page ids of each sequence, in order of position; unused entries are 0.
            [R, max pages] int32
        logit_rows: flat rows whose logits are wanted, ascending. [L] int32
        deterministic: False only if no row belongs to a deterministic request.
        hidden_rows: flat rows whose final hidden states are wanted, ascending; none of them is one
            of ``logit_rows``. [H] int32
    """

    input_ids: IntArray
    positions: IntArray
    query_start: IntArray
    block_tables: IntArray
    logit_rows: IntArray
    deterministic: bool = True
    hidden_rows: IntArray = field(default_factory=lambda: np.empty(0, np.int32))

    def one_token_each(self) -> Batch:
        """Return the rows as T sequences of one token, which share the pages they attend over."""
        rows = np.arange(len(self.input_ids) + 1, dtype=np.int32)
        owner = np.repeat(np.arange(len(self.query_start) - 1), np.diff(self.query_start))
        return replace(self, query_start=rows, block_tables=self.block_tables[owner])
