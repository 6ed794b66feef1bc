"""What attention's threads are dealt: every query, kv head and page once, cut where it is dear."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detinfer.kernels.cpu.attention_work import (
    DONE,
    FIRST,
    HEAD,
    PARTS,
    ROWS,
    SEGMENT_PAGES,
    SEQUENCE,
    SLOT,
    START,
    STOP,
    work_items,
)

LOADS = st.lists(st.tuples(st.integers(1, 90), st.integers(0, 3000)), min_size=1, max_size=6)


def make_items(load: list[tuple[int, int]], kv_heads: int, group: int, threads: int):
    """Items of sequences given as (new tokens, tokens before them)."""
    starts = np.cumsum([0, *(count for count, _ in load)]).astype(np.int32)
    positions = np.concatenate([np.arange(p, p + count) for count, p in load]).astype(np.int32)
    return work_items(starts, positions, kv_heads, group, threads)


@settings(deadline=None, max_examples=100)
@given(LOADS, st.integers(1, 4), st.sampled_from([1, 3, 7, 100]), st.sampled_from([1, 2, 64]))
def test_every_page_is_visited_once_for_every_query_and_head(load, kv_heads, group, threads):
    items, slots, cut_rows = make_items(load, kv_heads, group, threads)
    pages: dict[tuple[int, int, int], list[int]] = {}
    used: set[int] = set()
    for item in items:
        for row in range(item[FIRST], item[FIRST] + item[ROWS]):
            key = (item[SEQUENCE], row, item[HEAD])
            pages.setdefault(key, []).extend(range(item[START], item[STOP]))
        assert item[DONE] == 0
        if item[PARTS] > 1:
            assert item[ROWS] <= cut_rows
            assert item[START] % SEGMENT_PAGES == 0
            assert item[STOP] - item[START] <= SEGMENT_PAGES
            used.add(int(item[SLOT]) + int(item[START]) // SEGMENT_PAGES)
    assert used == set(range(slots))
    row = 0
    for sequence, (count, position) in enumerate(load):
        for here in range(position, position + count):
            for head in range(kv_heads):
                seen = pages.pop((sequence, row, head))
                assert sorted(seen) == list(range(len(seen)))
                assert len(seen) > here // 64
            row += 1
    assert not pages


@pytest.mark.parametrize(
    ("load", "parts"),
    [
        ([(1, 4095)], 8),  # one long sequence keeps all threads reading
        ([(1, 4095)] * 32, 1),  # of many, each has one of its own
        ([(512, 3584)], 1),
        ([(1, 400)], 1),  # one segment cannot be cut
    ],
)
def test_tiles_dearer_than_a_share_are_cut_at_their_segments(load, parts):
    items, slots, _ = make_items(load, kv_heads=3, group=3, threads=2)
    assert (items[:, PARTS] == parts).all()
    assert slots == (len(items) if parts > 1 else 0)
