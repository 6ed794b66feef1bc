"""Sudoku boards: search, proof that a solution is the only one, generation, difficulty.

A board is [size * size] int8, 0 where a cell is empty. ``high`` x ``wide`` are a box's sides,
``high * wide == size``. Everything random comes from a counter-based stream, so that a puzzle is a
function of (seed, index) alone.
"""

from __future__ import annotations

import numpy as np

from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.stream import draw, shuffle, stream

COMPLETE, CONTRADICTION = -1, -2
RATINGS = 5  # random orders of values that a difficulty is the mean of


@kernel
def units(size, high, wide):
    """Cells of each row, column and box. [3 * size, size]"""
    table = np.empty((3 * size, size), np.int64)
    filled = np.zeros(3 * size, np.int64)
    for cell in range(size * size):
        row, column = cell // size, cell % size
        box = row // high * (size // wide) + column // wide
        for unit in (row, size + column, 2 * size + box):
            table[unit, filled[unit]] = cell
            filled[unit] += 1
    return table


@kernel
def _members(table):
    """Find the three units of each cell. [cells, 3]"""
    size = table.shape[1]
    of = np.empty((size * size, 3), np.int64)
    for unit in range(table.shape[0]):
        for cell in table[unit]:
            of[cell, unit // size] = unit
    return of


@kernel
def _free(used, of):
    return ~(used[of[0]] | used[of[1]] | used[of[2]])


@kernel
def _put(values, used, of, cell, bit):
    value = 0
    while bit >> value > 1:
        value += 1
    values[cell] = value + 1
    for unit in of[cell]:
        used[unit] |= bit


@kernel
def _bits(mask):
    count = 0
    while mask:
        mask &= mask - 1
        count += 1
    return count


@kernel
def _naked_singles(values, used, of, full):
    """Fill cells with one candidate; return the cell with the fewest, or how it ended."""
    while True:
        best, fewest, changed = COMPLETE, 99, False
        for cell in range(values.size):
            if values[cell]:
                continue
            mask = _free(used, of[cell]) & full
            count = _bits(mask)
            if count == 0:
                return CONTRADICTION
            if count == 1:
                _put(values, used, of, cell, mask)
                changed = True
            elif count < fewest:
                best, fewest = cell, count
        if not changed:
            return best


@kernel
def _hidden_singles(values, used, table, of, full):
    """Fill cells that alone can hold a value of their unit; 1 if any, 0, or CONTRADICTION."""
    changed = 0
    for unit in range(table.shape[0]):
        once, twice = 0, 0
        for cell in table[unit]:
            if not values[cell]:
                mask = _free(used, of[cell]) & full
                twice |= once & mask
                once |= mask
        if (once | used[unit]) & full != full:
            return CONTRADICTION
        alone = once & ~twice
        for cell in table[unit]:
            if alone == 0:
                break
            if values[cell]:
                continue
            mask = _free(used, of[cell]) & alone
            if mask:
                if mask & (mask - 1):
                    return CONTRADICTION
                _put(values, used, of, cell, mask)
                alone &= ~mask
                changed = 1
    return changed


@kernel
def _propagate(values, used, table, of, full):
    """Fill what follows; return the cell to guess at, COMPLETE or CONTRADICTION."""
    while True:
        best = _naked_singles(values, used, of, full)
        if best < 0:
            return best
        changed = _hidden_singles(values, used, table, of, full)
        if changed < 0:
            return changed
        if not changed:
            return best


@kernel
def search(board, table, of, limit, nodes, state, solution):
    """Count the solutions of a board, up to ``limit``, by depth-first search.

    Args:
        board: [cells]
        table, of: from ``units`` and ``_members``.
        limit: of solutions.  nodes: of guesses; the count is -1 beyond them.
        state: a stream for the order of values, of size 0 for ascending order.
        solution: out, the first one found. [cells]

    Returns:
        Solutions, and dead ends met.
    """
    cells, full = board.size, (1 << table.shape[1]) - 1
    values, used = (
        np.zeros((cells + 1, cells), np.int8),
        np.zeros((cells + 1, len(table)), np.int64),
    )
    guess, left = np.zeros(cells + 1, np.int64), np.zeros(cells + 1, np.int64)
    for cell in range(cells):
        if board[cell]:
            bit = np.int64(1) << (np.int64(board[cell]) - 1)
            if not _free(used[0], of[cell]) & bit:
                return 0, 0
            _put(values[0], used[0], of, cell, bit)
    found, dead, depth, arrived = 0, 0, 0, True
    while depth >= 0:
        if arrived:
            cell = _propagate(values[depth], used[depth], table, of, full)
            if cell < 0:
                if cell == COMPLETE:
                    if found == 0:
                        solution[:] = values[depth]
                    found += 1
                    if found == limit:
                        return found, dead
                else:
                    dead += 1
                depth, arrived = depth - 1, False
                continue
            guess[depth], left[depth] = cell, _free(used[depth], of[cell]) & full
        if left[depth] == 0:
            depth, arrived = depth - 1, False
            continue
        bit = left[depth] & -left[depth]
        if state.size:
            for _ in range(draw(state, _bits(left[depth]))):
                bit = left[depth] & ~((bit << 1) - 1)
                bit &= -bit
        left[depth] ^= bit
        if nodes == 0:
            return -1, dead
        nodes -= 1
        values[depth + 1], used[depth + 1] = values[depth], used[depth]
        _put(values[depth + 1], used[depth + 1], of, guess[depth], bit)
        depth, arrived = depth + 1, True
    return found, dead


@kernel
def solutions(board, size, high, wide, limit, nodes, solution):
    """Count a board's solutions up to ``limit``; -1 where ``nodes`` guesses do not tell."""
    table = units(size, high, wide)
    none = np.empty(0, np.uint64)
    return search(board, table, _members(table), limit, nodes, none, solution)[0]


@kernel
def generate(seed, first, size, high, wide, puzzles, answers, difficulty):
    """Make minimal puzzles with one solution: number ``first`` and those after it.

    Args:
        puzzles, answers: out. [count, cells] int8
        difficulty: out, dead ends of a search, in fifths. [count] int64
    """
    table = units(size, high, wide)
    of = _members(table)
    cells, always = size * size, np.int64(1) << 62
    none, board = np.empty(0, np.uint64), np.empty(cells, np.int8)
    for i in range(len(puzzles)):
        state = stream(seed, first + i)
        board[:] = 0
        order = np.arange(size).astype(np.int8)
        shuffle(state, order)
        board[:size] = order + 1
        search(board, table, of, 1, always, state, answers[i])
        board[:] = answers[i]
        places = np.arange(cells)
        shuffle(state, places)
        for cell in places:
            clue = board[cell]
            board[cell] = 0
            if search(board, table, of, 2, always, none, puzzles[i])[0] > 1:
                board[cell] = clue
        difficulty[i] = 0
        for _ in range(RATINGS):
            difficulty[i] += search(board, table, of, 2, always, state, puzzles[i])[1]
        puzzles[i] = board
