"""The work of an attention step: what is visited, in which order, and the room it takes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detinfer.kernels.triton.attention_work import (
    BLOCK,
    SEGMENT_BLOCKS,
    Layout,
    Tiling,
    WorkList,
    padded_group,
    work_list,
)

TILING = Tiling(prefill_rows=64, decode_rows=16, prefill_from=32, whole=True)
LAYOUT = Layout(TILING, 2, 0, prefill=0, decode=1, merges=0, slots=0)
TILINGS = st.builds(
    Tiling,
    prefill_rows=st.sampled_from([16, 32, 64, 128]),
    decode_rows=st.sampled_from([16, 32, 64]),
    prefill_from=st.sampled_from([1, 2, 17, 32, 10**6]),
    whole=st.booleans(),
)
LOADS = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 3000)), max_size=6)


def zeros(n: int) -> np.ndarray:
    return np.zeros(n, np.int32)


def make_work(load: list[tuple[int, int]], group: int, tiling: Tiling, window: int) -> WorkList:
    starts = np.concatenate(([0], np.cumsum([n for n, _ in load]))).astype(np.int32)
    return work_list(starts, np.array([p for _, p in load], np.int32), group, tiling, window)


def repack(work: WorkList, layout: Layout) -> None:
    work.pack_into(np.zeros(layout.size, np.int32), layout)


@settings(deadline=None, max_examples=150)
@given(LOADS, st.integers(1, 16), TILINGS, st.sampled_from([0, 1, 64, 65, 500, 513, 2000]))
def test_work_visits_what_each_row_sees_once(load, group, tiling, window):
    work = make_work(load, group, tiling, window)
    visits: dict[int, list[tuple[int, int, int]]] = {}
    for items, block_m, long in (
        (work.prefill, tiling.prefill_rows, True),
        (work.decode, tiling.decode_rows, False),
    ):
        lengths = items[:, 5] - items[:, 4]
        assert (lengths > 0).all()
        assert (np.diff(lengths) <= 0).all(), "longest first"
        for _, _, rows, _, first, end, _, zero in items.tolist():
            assert rows * padded_group(group) <= block_m
            assert zero == 0
            whole = long and tiling.whole
            assert whole or first // SEGMENT_BLOCKS == (end - 1) // SEGMENT_BLOCKS
        for item in items.tolist():
            for i in range(item[2]):
                slot = item[6] + i if item[6] >= 0 else -1
                visits.setdefault(item[1] + i, []).append((item[4], item[5], slot))
    merges = {row: (slot, step, count) for row, slot, step, count in work.merges.tolist()}
    assert len(merges) == len(work.merges)
    used: list[int] = []
    row = 0
    for count, first_position in load:
        for position in range(first_position, first_position + count):
            parts = sorted(visits.pop(row))
            lowest = max(0, position - window + 1) // BLOCK if window else 0
            assert parts[0][0] <= lowest
            assert parts[-1][1] > position // BLOCK
            assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
            slots = [slot for _, _, slot in parts]
            if len(parts) == 1:
                assert slots == [-1]
                assert row not in merges
            else:
                slot, step, pieces = merges.pop(row)
                assert slots == [slot + step * n for n in range(pieces)]
                used += slots
            row += 1
    assert not visits
    assert not merges
    assert sorted(used) == list(range(work.layout.slots))


@settings(deadline=None, max_examples=150)
@given(LOADS, st.integers(1, 16), TILINGS, st.sampled_from([0, 1, 64, 65, 500, 513, 2000]))
def test_layout_for_a_load_has_room_for_it(load, group, tiling, window):
    rows = max([n for n, _ in load], default=0)
    length = max([n + p for n, p in load], default=0)
    layout = Layout.for_load(tiling, group, window, len(load), rows, length)
    buffer = np.zeros(layout.size, np.int32)
    work = make_work(load, group, tiling, window)
    work.pack_into(buffer, layout)
    at = layout.decode_at
    assert buffer[:3].tolist() == [len(work.prefill), len(work.decode), len(work.merges)]
    assert (buffer[at : at + work.decode.size] == work.decode.reshape(-1)).all()


def test_work_never_reads_blocks_a_window_has_left():
    work = make_work([(1, 3000)], 4, TILING, 100)
    assert work.decode[:, 4].min() == (3000 - 99) // BLOCK


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (
            "first_positions",
            lambda t: work_list(np.zeros(3, np.int32), np.zeros(1, np.int32), 2, t),
        ),
        ("group", lambda t: work_list(np.zeros(1, np.int32), np.zeros(0, np.int32), 40, t)),
        ("group", lambda t: work_list(np.zeros(1, np.int32), np.zeros(0, np.int32), 0, t)),
        ("window", lambda t: work_list(np.zeros(1, np.int32), np.zeros(0, np.int32), 2, t, -1)),
        ("buffer", lambda t: make_work([(1, 9)], 2, t, 0).pack_into(np.zeros(3, np.int32), LAYOUT)),
        ("layout", lambda t: repack(make_work([(2, 9), (1, 1)], 2, t, 0), LAYOUT)),
        ("layout", lambda t: repack(make_work([(1, 9)], 2, t, 5), LAYOUT)),
        ("layout", lambda t: repack(make_work([(1, 9)], 3, t, 0), LAYOUT)),
    ],
)
def test_bad_work_is_named(name, wrong):
    with pytest.raises(ValueError, match=f"^{name}: got .*expected"):
        wrong(TILING)
