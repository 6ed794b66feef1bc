"""Work lists of paged attention, made on the host in one pass of NumPy a batch.

A *tile* is a run of query positions of one sequence, with every head of a group; an *item* is what
one program walks: a tile and a range of its 64-key blocks. Long prompts are walked whole, an item a
tile; a tile of few rows is split at its 512-key segments, and a *merge* adds one query row's
partial results. How rows are cut never changes a bit (docs/arithmetic.md, N3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]

BLOCK = 64  # keys of a block, and of a page of the cache
SEGMENT_BLOCKS = 8
ITEM = 8  # ints: sequence, first flat row, rows, first position, first block, end block, slot, 0
MERGE = 4  # ints: flat row, slot of its first segment, slots to its next one, segments
HEADER = 4  # ints: prefill items, decode items, merges, 0


def padded_group(group: int) -> int:
    """Rows a tile spends on one position: the heads of a group, to a power of two."""
    return 1 << (group - 1).bit_length()


@dataclass(frozen=True)
class Tiling:
    """How sequences are cut into tiles; from the launch table.

    Attributes:
        prefill_rows: rows (positions x padded group) of a tile of a long chunk.
        decode_rows: rows of a tile of a short one.
        prefill_from: sequences with at least this many rows in the batch are long.
        whole: whether a long chunk's tile is one item; otherwise it too is split at segments.
    """

    prefill_rows: int
    decode_rows: int
    prefill_from: int
    whole: bool


@dataclass(frozen=True)
class Layout:
    """Where a packed work list keeps its lists, and how much of each there is room for.

    Attributes:
        tiling: of the work lists it can hold.
        group: query heads of a KV head.
        window: sliding window in keys, 0 for none.
        prefill: items of long chunks; 0 means that there never are any.
        decode: items of short ones.
        merges: query rows whose segments are merged.
        slots: query rows of partial results.
    """

    tiling: Tiling
    group: int
    window: int
    prefill: int
    decode: int
    merges: int
    slots: int

    @classmethod
    def for_load(
        cls, tiling: Tiling, group: int, window: int, sequences: int, rows: int, length: int
    ) -> Layout:
        """Room for any batch of at most so many sequences, of at most ``rows`` rows each.

        Args:
            length: positions of the longest sequence.
        """
        segment = BLOCK * SEGMENT_BLOCKS
        long = rows >= tiling.prefill_from
        short_rows = min(rows, tiling.prefill_from - 1)

        def tiles(count: int, block_m: int) -> tuple[int, int]:
            """Tiles of all sequences, and the segments one of them sees at most."""
            step = min(block_m // padded_group(group), count)
            seen = min(length, step + window - 1) if window else length
            return -(-count // step) * sequences, min(
                -(-length // segment), -(-(seen - 1) // segment) + 1
            )

        prefill, decode, slots = 0, 0, 0
        if long:
            count, segments = tiles(rows, tiling.prefill_rows)
            prefill = count if tiling.whole else count * segments
            slots = 0 if tiling.whole else rows * sequences * segments
        if short_rows:
            count, segments = tiles(short_rows, tiling.decode_rows)
            decode = count * segments
            slots = max(slots, short_rows * sequences * segments)
        merges = sequences * (rows if long and not tiling.whole else short_rows)
        return cls(tiling, group, window, prefill, decode, merges, slots)

    @property
    def decode_at(self) -> int:
        """Offset of the decode items."""
        return HEADER + self.prefill * ITEM

    @property
    def merges_at(self) -> int:
        """Offset of the merges."""
        return self.decode_at + self.decode * ITEM

    @property
    def size(self) -> int:
        """Ints of the whole buffer."""
        return self.merges_at + self.merges * MERGE


@dataclass(frozen=True)
class WorkList:
    """The work of one batch for the layers of one window.

    Attributes:
        prefill: items of long chunks, longest first. [n, 8]
        decode: items of short ones, longest first. [n, 8]
        merges: query rows whose segments are merged. [n, 4]
        layout: the smallest that holds it.
    """

    prefill: Ints
    decode: Ints
    merges: Ints
    layout: Layout

    def pack(self) -> Ints:
        """Return it as one buffer of its own layout. [layout.size]"""
        buffer = np.zeros(self.layout.size, np.int32)
        self.pack_into(buffer, self.layout)
        return buffer

    def pack_into(self, buffer: Ints, layout: Layout) -> None:
        """Write it into ``buffer`` [layout.size], for kernels that read fixed addresses.

        Raises:
            ValueError: the layout has no room, or is for another tiling, group or window.
        """
        own = self.layout
        if buffer.shape != (layout.size,) or buffer.dtype != np.int32:
            raise ValueError(
                f"buffer: got {buffer.dtype}{buffer.shape}, expected int32({layout.size},)"
            )
        for name in ("tiling", "group", "window"):
            got, expected = getattr(layout, name), getattr(own, name)
            if got != expected:
                raise ValueError(f"layout: got {name} {got}, expected {expected}")
        for name in ("prefill", "decode", "merges", "slots"):
            got, needed = getattr(layout, name), getattr(own, name)
            if got < needed:
                raise ValueError(f"layout: got room for {got} {name}, expected at least {needed}")
        buffer[:HEADER] = (len(self.prefill), len(self.decode), len(self.merges), 0)
        for start, part in (
            (HEADER, self.prefill),
            (layout.decode_at, self.decode),
            (layout.merges_at, self.merges),
        ):
            buffer[start : start + part.size] = part.reshape(-1)


def work_list(
    query_start: Ints, first_positions: Ints, group: int, tiling: Tiling, window: int = 0
) -> WorkList:
    """Cut a batch into items and merges.

    Args:
        query_start: first flat row of each sequence, and the number of rows. [R + 1]
        first_positions: absolute position of each sequence's first row. [R]
        group: query heads of a KV head.
        window: sliding window in keys, 0 for none.

    Raises:
        ValueError: on shapes that do not fit, or a group wider than a tile.
    """
    if query_start.ndim != 1 or first_positions.shape != (query_start.size - 1,):
        raise ValueError(
            f"first_positions: got shape {first_positions.shape}, "
            f"expected ({query_start.size - 1},)"
        )
    heads = padded_group(group)
    if group < 1 or heads > min(tiling.prefill_rows, tiling.decode_rows):
        raise ValueError(
            f"group: got {group}, expected 1 to "
            f"{min(tiling.prefill_rows, tiling.decode_rows)} heads"
        )
    if window < 0:
        raise ValueError(f"window: got {window}, expected 0 or more keys")
    starts, counts = query_start[:-1].astype(np.int64), np.diff(query_start).astype(np.int64)
    long = counts >= tiling.prefill_from
    step = np.where(long, tiling.prefill_rows // heads, tiling.decode_rows // heads)

    # Tiles: `within` counts a sequence's own.
    sequence, within = _spread(-(-counts // step))
    offset = within * step[sequence]
    rows = np.minimum(step[sequence], counts[sequence] - offset)
    row, position = starts[sequence] + offset, first_positions[sequence] + offset
    first_block = np.maximum(position - window + 1, 0) // BLOCK if window else 0 * position
    end_block = -(-(position + rows) // BLOCK)
    first_segment = first_block // SEGMENT_BLOCKS
    segments = (end_block - 1) // SEGMENT_BLOCKS - first_segment + 1

    # Partial results: a slot for every row and segment of the tiles that are split for good.
    is_whole = long[sequence] & tiling.whole
    pieces = np.where(is_whole, 1, segments)
    needed = np.where(pieces > 1, pieces * rows, 0)
    slot = np.cumsum(needed) - needed

    tile, piece = _spread(pieces)
    start = (first_segment[tile] + piece) * SEGMENT_BLOCKS
    items = np.zeros((len(tile), ITEM), np.int32)
    items[:, 0] = sequence[tile]
    items[:, 1] = row[tile]
    items[:, 2] = rows[tile]
    items[:, 3] = position[tile]
    items[:, 4] = np.maximum(first_block[tile], start)
    items[:, 5] = np.where(
        is_whole[tile], end_block[tile], np.minimum(end_block[tile], start + SEGMENT_BLOCKS)
    )
    items[:, 6] = np.where(pieces[tile] > 1, slot[tile] + piece * rows[tile], -1)

    merged, i = _spread(np.where(pieces > 1, rows, 0))
    merges = np.empty((len(merged), MERGE), np.int32)
    merges[:, 0] = row[merged] + i
    merges[:, 1] = slot[merged] + i
    merges[:, 2] = rows[merged]
    merges[:, 3] = pieces[merged]

    longest = np.argsort(items[:, 4] - items[:, 5], kind="stable")
    items, is_long = items[longest], long[sequence][tile][longest]
    prefill, decode = items[is_long], items[~is_long]
    layout = Layout(
        tiling, group, window, len(prefill), len(decode), len(merges), int(needed.sum())
    )
    return WorkList(prefill, decode, merges, layout)


def _spread(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Owner and index within the owner of ``counts.sum()`` things."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
