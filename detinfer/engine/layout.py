"""From a step's rows to the batch that a runner is given; who is to blame when that fails."""

from __future__ import annotations

import numpy as np

from detinfer.batch import Batch
from detinfer.config import pages_for
from detinfer.engine.request import Request
from detinfer.engine.scheduler import ScheduledRow


def make_batch(rows: list[ScheduledRow]) -> Batch:
    """One step's work as the model runner sees it.

    A row asks for its last token's logits when that is the last the request has, for those of every
    token of a draft, and for those of the prompt's positions that are to be scored; or, where no
    answer is wanted, for hidden states alone.
    """
    # Lists and few arrays: for a row or a few dozens, each call into NumPy costs as much as a row.
    input_ids: list[int] = []
    positions: list[int] = []
    logit_rows: list[int] = []
    hidden_rows: list[int] = []
    query_start = [0]
    pages = max(pages_for(row.request.num_computed + _length(row)) for row in rows)
    block_tables = np.zeros((len(rows), pages), dtype=np.int32)
    for i, row in enumerate(rows):
        request, start = row.request, row.request.num_computed
        end, stop = start + row.num_tokens, start + _length(row)
        first = len(input_ids) - start
        logit_rows.extend(first + position for position in row.scored)
        hidden_rows.extend(first + position for position in row.pooled)
        input_ids.extend(request.token_ids[start:end])
        input_ids.extend(row.draft)
        positions.extend(range(start, stop))
        query_start.append(len(input_ids))
        if end == len(request.token_ids) and request.pool is None:
            logit_rows.extend(range(len(input_ids) - len(row.draft) - 1, len(input_ids)))
        assert stop < request.longest, f"{request.request_id}: past its last position"
        used = pages_for(stop)
        block_tables[i, :used] = request.block_table[:used]
    return Batch(
        input_ids=np.array(input_ids, dtype=np.int32),
        positions=np.array(positions, dtype=np.int32),
        query_start=np.array(query_start, dtype=np.int32),
        block_tables=block_tables,
        logit_rows=np.array(logit_rows, dtype=np.int32),
        deterministic=any(row.request.params.deterministic for row in rows),
        hidden_rows=np.array(hidden_rows, dtype=np.int32),
    )


def _length(row: ScheduledRow) -> int:
    return row.num_tokens + len(row.draft)


def lay_out(
    rows: list[ScheduledRow], failed: dict[Request, Exception]
) -> tuple[Batch | None, list[ScheduledRow]]:
    """Return the batch of a step's rows, and which they are: none that fail alone as well."""
    try:
        return (make_batch(rows), rows) if rows else (None, [])
    except Exception:
        failed |= {row.request: fault for row in rows if (fault := _fault(row)) is not None}
    rows = [row for row in rows if row.request not in failed]
    try:
        return (make_batch(rows), rows) if rows else (None, [])
    except Exception as error:  # nobody's in particular
        failed |= {row.request: error for row in rows}
        return None, []


def _fault(row: ScheduledRow) -> Exception | None:
    try:
        make_batch([row])
    except Exception as error:
        return error
    return None
