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
    token of a draft, and for those of the prompt's positions that are to be scored.
    """
    counts = np.array([row.num_tokens + len(row.draft) for row in rows], dtype=np.int32)
    starts = np.array([row.request.num_computed for row in rows], dtype=np.int32)
    query_start = np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])
    input_ids: list[int] = []
    logit_rows: list[int] = []
    pages = pages_for(int((starts + counts).max()))
    block_tables = np.zeros((len(rows), pages), dtype=np.int32)
    for i, (request, count, draft, scored) in enumerate(rows):
        end = request.num_computed + count
        first = len(input_ids) - request.num_computed
        logit_rows.extend(first + position for position in scored)
        input_ids.extend(request.token_ids[request.num_computed : end])
        input_ids.extend(draft)
        if end == len(request.token_ids):
            logit_rows.extend(range(len(input_ids) - len(draft) - 1, len(input_ids)))
        assert end + len(draft) < request.longest, f"{request.request_id}: past its last position"
        used = pages_for(end + len(draft))
        block_tables[i, :used] = request.block_table[:used]
    offsets = np.arange(len(input_ids), dtype=np.int32) - np.repeat(query_start[:-1], counts)
    return Batch(
        input_ids=np.array(input_ids, dtype=np.int32),
        positions=np.repeat(starts, counts) + offsets,
        query_start=query_start,
        block_tables=block_tables,
        logit_rows=np.array(logit_rows, dtype=np.int32),
        deterministic=any(row.request.params.deterministic for row in rows),
    )


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
