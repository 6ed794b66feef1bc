"""A board is read, or refused in one line, before any model sees it."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_solvers import answer, puzzles

from detinfer.errors import RequestError
from detinfer.recursive.puzzle import read_puzzle
from detinfer.recursive.tasks import TASKS

TASK = TASKS["sudoku4"]
[PUZZLE] = puzzles("sudoku4", 1)
SOLVABLE = PUZZLE.text
# No two clues clash, but the last cell of the first row can hold nothing.
STUCK = "123." + "...4" + "." * 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "grid: has 0 cells, expected 16"),
        (SOLVABLE + "1", "grid: has 17 cells, expected 16"),
        ("x" + SOLVABLE[1:], "grid: cell 1 is 'x', expected"),
        ("5" + SOLVABLE[1:], "grid: cell 1 is '5', expected"),
        ("é" + SOLVABLE[1:], "grid: cell 1 is 'é', expected"),
        ("." * 16, "grid: got no clue at all, expected a board with one solution"),
        ("1" + "." * 15, "grid: got a board with more than one solution (1 clues), expected one"),
        (7, "grid: got int, expected a string"),
    ],
)
def test_what_cannot_be_solved_is_refused_in_a_line(text, said):
    with pytest.raises(RequestError) as raised:
        read_puzzle(TASK, text)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)
    assert raised.value.param == "grid"


def test_boards_without_a_solution_are_told_so():
    clash = read_puzzle(TASK, "11" + "." * 14)
    assert clash.unsolvable == "row 1 has 1 more than once"
    assert read_puzzle(TASK, STUCK).unsolvable == "the board has no solution"
    assert read_puzzle(TASK, SOLVABLE).unsolvable is None


def test_a_board_that_cannot_be_counted_soon_may_be_run(monkeypatch):
    monkeypatch.setattr(type(TASK), "solutions", lambda *arguments: -1)
    assert read_puzzle(TASK, STUCK).unsolvable is None


def test_cells_that_show_a_fault_are_told():
    board = PUZZLE.board
    right = answer(PUZZLE)
    assert not TASK.wrong(board, right).any()
    for cell in range(16):
        grid = right.copy()
        grid[cell] = right[cell] % 4 + 1
        found = TASK.wrong(board, grid)
        assert found[cell]
        assert np.count_nonzero(found) in (3, 4)  # its like in row, column and box
        grid[cell] = 0
        assert [*np.flatnonzero(TASK.wrong(board, grid))] == [cell]


def test_cells_of_a_maze_that_show_a_fault_are_told():
    maze = TASKS["maze"]
    made = maze.generate(3, 0, 20)
    for board, right in zip(made.boards, made.answers, strict=True):
        assert not maze.wrong(board, right).any()
        for cell in range(maze.cells):  # of one change, the cell or its neighbours tell
            for token in range(maze.vocab):
                grid = right.copy()
                grid[cell] = token
                assert maze.wrong(board, grid).any() == (token != right[cell])


def test_lines_between_cells_are_left_out():
    rows = [SOLVABLE[at : at + 4] for at in range(0, 16, 4)]
    drawn = "\n".join([" | ".join((row[:2], row[2:])) for row in rows])
    for text in (drawn, drawn.replace(".", "0"), "\r\n".join(rows), "\n--+--\n".join(rows)):
        assert read_puzzle(TASK, text).text == SOLVABLE
