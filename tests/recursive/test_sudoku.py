"""Puzzles: one solution, not a clue too many, the same for the same numbers; rules and clashes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detinfer.errors import RequestError
from detinfer.recursive.tasks import TASKS
from detinfer.recursive.training.data import Pool

COUNTS = {"sudoku4": 30, "sudoku6": 12, "sudoku9": 4}


def count_slowly(task, board, limit=2):
    """Solutions by trying every value in every cell that is left, in order: no cleverness."""
    member = [[set(map(int, cells)) for cells in kind] for kind in task.units]
    peers = [
        set().union(*(unit for kind in member for unit in kind if cell in unit)) - {cell}
        for cell in range(task.cells)
    ]
    board = [int(value) for value in board]

    def descend():
        open_cells = [cell for cell in range(task.cells) if not board[cell]]
        if not open_cells:
            return 1
        options = {
            cell: set(range(1, task.size + 1)) - {board[peer] for peer in peers[cell]}
            for cell in open_cells
        }
        cell = min(open_cells, key=lambda one: len(options[one]))
        found = 0
        for value in options[cell]:
            board[cell] = value
            found += descend()
            if found >= limit:
                break
        board[cell] = 0
        return found

    return min(limit, descend())


@pytest.mark.parametrize("name", COUNTS)
def test_puzzles_are_minimal_and_have_one_solution(name):
    task = TASKS[name]
    puzzles = task.generate(seed=7, first=0, count=COUNTS[name])
    assert task.holds(puzzles.boards, puzzles.answers).all()
    for board in puzzles.boards:
        assert count_slowly(task, board) == task.solutions(board) == 1
        for cell in np.flatnonzero(board):
            fewer = board.copy()
            fewer[cell] = 0
            assert task.solutions(fewer) == 2


def test_a_puzzle_is_a_function_of_its_numbers():
    task = TASKS["sudoku6"]
    whole, part = task.generate(3, 0, 20), task.generate(3, 12, 5)
    for one, other in zip(whole, part, strict=True):
        assert np.array_equal(one[12:17], other)
    assert not np.array_equal(whole.boards, task.generate(4, 0, 20).boards)
    assert len(np.unique(whole.boards, axis=0)) == 20


@pytest.mark.parametrize("name", COUNTS)
def test_solutions_are_counted(name):
    task = TASKS[name]
    answer = task.generate(1, 0, 1).answers[0]
    assert task.solutions(answer) == 1
    assert task.solutions(np.zeros_like(answer), limit=9) == 9
    wrong = answer.copy()
    wrong[0], wrong[1] = wrong[1], wrong[0]
    assert task.solutions(wrong) == 0


def test_holds_asks_for_clues_and_rules():
    task = TASKS["sudoku6"]
    puzzles = task.generate(2, 0, 3)
    answers = puzzles.answers.copy()
    answers[0] = answers[0][::-1]  # follows the rules, but not the clues
    answers[1, :2] = answers[1, 1::-1]
    assert task.holds(puzzles.boards, answers).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ((0, 8), "row 1 has 5"),
        ((0, 72), "column 1 has 5"),
        ((0, 10), "box 1 has 5"),
        ((0, 80), None),
    ],
)
def test_a_clash_is_named(cells, said):
    board = np.zeros(81, np.int8)
    board[list(cells)] = 5
    clash = TASKS["sudoku9"].clash(board)
    assert clash is None if said is None else clash is not None and clash.startswith(said)


@pytest.mark.parametrize("name", COUNTS)
def test_a_disguise_is_another_puzzle_with_its_own_answer(name):
    task = TASKS[name]
    puzzles = task.generate(5, 0, 8)
    boards, answers = (torch.from_numpy(one).long() for one in puzzles[:2])
    random = torch.Generator().manual_seed(0)
    other, solved = (one.numpy().astype(np.int8) for one in task.disguise(boards, answers, random))
    assert task.holds(other, solved).all()
    assert ((other > 0).sum(1) == (puzzles.boards > 0).sum(1)).all()
    assert not (other == puzzles.boards).all(1).any()
    assert [task.solutions(board) for board in other] == [1] * 8


def test_what_is_trained_on_is_never_tested():
    task = TASKS["sudoku4"]
    tests = task.generate(1, 0, 50)  # the very stream that a pool is made of
    pool = Pool.make(task, 200, 0.35, tests)
    known = {board.tobytes() for board in tests.boards}
    assert not known & {row.numpy().astype(np.int8).tobytes() for row in pool.boards}
    assert 0 < len(pool.boards) < 200


def test_text_is_read_as_it_is_written():
    task = TASKS["sudoku6"]
    [board] = task.generate(6, 0, 1).boards
    text = task.render(board)
    rows = [text[at : at + task.width] for at in range(0, task.cells, task.width)]
    for written in (text, text.replace(".", "0"), "\n".join(rows) + "\n", "\r\n".join(rows)):
        assert np.array_equal(task.parse(written), board)
    assert np.array_equal(task.clues(board), np.array([one != "." for one in text]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("." * 35, "grid: has 35 cells, expected 36"),
        ("." * 37, "grid: has 37 cells, expected 36"),
        ("", "grid: has 0 cells, expected 36"),
        ("." * 7 + "7" + "." * 28, "grid: cell 8 is '7', expected 1 to 6, or . where it is empty"),
        ("." * 35 + "é", "grid: cell 36 is 'é'"),
    ],
)
def test_other_text_is_refused(text, said):
    with pytest.raises(RequestError, match=said):
        TASKS["sudoku6"].parse(text)
