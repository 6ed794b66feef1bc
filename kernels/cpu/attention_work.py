"""What attention's threads are dealt: tiles of queries, the dearest of them cut at their segments.

Which thread computes an item, and where a tile is cut, cannot change a bit: segments are computed
apart in any case, and merged in ascending order (docs/arithmetic.md, rule 3).
"""

from __future__ import annotations

import numpy as np

from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.cpu.jit import kernel

SEGMENT_PAGES = 8
TILE_ROWS = 96  # a page is read from the caches' far end once a tile
SHARES = 8  # a thread's share of a step is at least so many items, if segments allow it

SEQUENCE, FIRST, ROWS, HEAD, START, STOP, PARTS, SLOT, DONE = range(9)
COLUMNS = 9


@kernel
def work_items(query_start, positions, kv_heads, group, threads):
    """Work items, dearest first, and what they leave to be merged.

    Costs are estimated from the visible keys.

    Returns:
        items: rows of COLUMNS: sequence, first flat row, queries, kv head, pages [START, STOP);
            into how many PARTS the tile is cut, the SLOT of the first of them, and, in the item of
            the first part, how many are DONE. [items, COLUMNS] int64
        slots: parts of all tiles that are cut.
        cut_rows: most queries of such a tile.
    """
    step = max(1, TILE_ROWS // group)
    sequences = query_start.size - 1
    count = 0
    for r in range(sequences):
        count += (query_start[r + 1] - query_start[r] + step - 1) // step
    tiles = np.empty((count, 5), np.int64)  # sequence, first row, rows, pages, cost
    used, total = 0, 0
    for r in range(sequences):
        for first in range(query_start[r], query_start[r + 1], step):
            rows = min(step, query_start[r + 1] - first)
            keys = positions[first] + rows
            cost = rows * keys
            at = used
            while at > 0 and tiles[at - 1, 4] < cost:
                tiles[at] = tiles[at - 1]
                at -= 1
            tiles[at, 0], tiles[at, 1], tiles[at, 2], tiles[at, 4] = r, first, rows, cost
            tiles[at, 3] = (keys + PAGE_SIZE - 1) // PAGE_SIZE
            used += 1
            total += cost * kv_heads
    parts = np.ones(count, np.int64)
    for i in range(count):
        if tiles[i, 4] * SHARES * threads > total:
            parts[i] = (tiles[i, 3] + SEGMENT_PAGES - 1) // SEGMENT_PAGES
    items = np.zeros((parts.sum() * kv_heads, COLUMNS), np.int64)
    used, slots, cut_rows = 0, 0, 0
    for i in range(count):
        for head in range(kv_heads):
            for part in range(parts[i]):
                item = items[used]
                item[SEQUENCE], item[FIRST], item[ROWS] = tiles[i, 0], tiles[i, 1], tiles[i, 2]
                item[HEAD], item[PARTS], item[SLOT] = head, parts[i], slots
                item[STOP] = tiles[i, 3]
                if parts[i] > 1:
                    item[START] = part * SEGMENT_PAGES
                    item[STOP] = min(tiles[i, 3], (part + 1) * SEGMENT_PAGES)
                used += 1
            if parts[i] > 1:
                slots, cut_rows = slots + parts[i], max(cut_rows, tiles[i, 2])
    return items, slots, cut_rows
