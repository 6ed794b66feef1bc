"""Mazes: one shortest path, told from every other; the same for the same numbers; symmetries."""

from __future__ import annotations

import hashlib
from collections import deque

import numpy as np
import pytest
import torch

from detinfer.errors import RequestError
from detinfer.recursive.tasks import TASKS
from detinfer.recursive.tasks.maze import Maze
from detinfer.recursive.training.data import Pool

SMALL = Maze(6, 3)
PUZZLE = "######/#S...#/#.##.#/#.##G#/#....#/######"  # five steps by the right, seven by the left


def board_of(rows):
    return SMALL.parse(rows.replace("/", "\n"))


def shortest_slowly(board, width):
    """Every shortest path from start to goal, as sets of cells: breadth first over whole paths."""
    board = [int(token) for token in board]
    ways, found = deque([(board.index(2),)]), []
    while ways:
        way = ways.popleft()
        if found and len(way) >= len(found[0]) + 2:
            break
        for step in (-width, -1, 1, width):
            cell = way[-1] + step
            if board[cell] == 3:
                found.append(way[1:])
            elif board[cell] == 1 and cell not in way:
                ways.append((*way, cell))
    least = min(map(len, found), default=0)
    return [set(way) for way in found if len(way) == least]


def test_mazes_have_one_shortest_path_and_it_is_marked():
    task = TASKS["maze"]
    puzzles = task.generate(7, 0, 40)
    assert task.holds(puzzles.boards, puzzles.answers).all()
    looped = 0
    for board, answer in zip(puzzles.boards, puzzles.answers, strict=True):
        assert task.clash(board) is None
        assert task.solutions(board) == 1
        marked = set(np.flatnonzero(answer == 4))
        assert shortest_slowly(board, task.width) == [marked]
        assert len(marked) + 1 >= task.least
        walls = board.reshape(12, 12) == 0
        passages = (~walls[1:] & ~walls[:-1]).sum() + (~walls[:, 1:] & ~walls[:, :-1]).sum()
        looped += passages > (~walls).sum() - 1
    assert looped == len(puzzles.boards), "none is a tree: there is more than one way round"


def test_a_maze_is_a_function_of_its_numbers():
    task = TASKS["maze"]
    whole, part = task.generate(3, 0, 20), task.generate(3, 12, 5)
    for one, other in zip(whole, part, strict=True):
        assert np.array_equal(one[12:17], other)
    assert not np.array_equal(whole.boards, task.generate(4, 0, 20).boards)
    assert len({task.essence(board) for board in whole.boards}) == 20


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("######/#Sooo#/#.##o#/#.##G#/#....#/######", True),
        ("######/#S...#/#.##.#/#.##G#/#....#/######", False),  # nothing marked
        ("######/#Soo.#/#.##o#/#.##G#/#....#/######", False),  # a gap
        ("######/#Sooo#/#.##o#/#.##G#/#..o.#/######", False),  # a cell too many
        ("######/#S...#/#o##.#/#o##G#/#oooo#/######", False),  # the other way, not the shortest
        ("######/#Sooo#/#.##o#/#.##G#/#...##/######", False),  # an open cell is a wall now
        ("######/#Sooo#/#.##o#/#.#oG#/#....#/######", False),  # a wall is marked
        ("######/#oooo#/#.##o#/#.##G#/#....#/######", False),  # the start is gone
    ],
)
def test_holds_asks_for_the_shortest_path_alone(answer, right):
    board = board_of(PUZZLE)
    assert SMALL.holds(board[None], board_of(answer)[None]).tolist() == [right]


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        (PUZZLE, 1),
        ("######/#S...#/#.##.#/#.##.#/#...G#/######", 2),
        ("######/#S..##/######/#..G.#/#....#/######", 0),
        ("######/#S...#/#....#/#....#/#...G#/######", 9),  # 20 there are
    ],
)
def test_shortest_paths_are_counted(rows, count):
    board = board_of(rows)
    assert SMALL.solutions(board, limit=9) == count
    assert min(9, len(shortest_slowly(board, 6))) == count


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (PUZZLE, None),
        (PUZZLE.replace("S", "."), "no start (S), expected one"),
        (PUZZLE.replace("S.", "SS"), "2 start (S), expected one"),
        (PUZZLE.replace("G", "#"), "no goal (G), expected one"),
        ("###.##" + PUZZLE[6:], "row 1, column 4 is at the border and no wall"),
        (PUZZLE.replace("....#/######", "...o#/######"), "row 5, column 5 is marked already"),
    ],
)
def test_a_clash_is_named(rows, said):
    assert SMALL.clash(board_of(rows)) == said


def test_a_disguise_is_another_form_of_the_same_maze():
    task = TASKS["maze"]
    puzzles = task.generate(5, 0, 40)
    boards, answers = (torch.from_numpy(one).long() for one in puzzles[:2])
    random = torch.Generator().manual_seed(0)
    other, solved = (one.numpy().astype(np.int8) for one in task.disguise(boards, answers, random))
    assert task.holds(other, solved).all()
    same = (other == puzzles.boards).all(1)
    assert 0 < same.sum() < 20
    assert [task.essence(one) for one in other] == [task.essence(one) for one in puzzles.boards]


def test_no_form_of_what_is_trained_on_is_tested():
    tests = SMALL.generate(1, 0, 40)
    turned = tests._replace(boards=tests.boards.reshape(-1, 6, 6)[:, ::-1].reshape(-1, 36))
    pool = Pool.make(SMALL, 400, 0.0, turned)
    known = {SMALL.essence(board) for board in tests.boards}
    assert not known & {SMALL.essence(row.numpy().astype(np.int8)) for row in pool.boards}
    assert 0 < len(pool.boards) < 400


def test_mazes_stay_what_models_were_tested_on():
    puzzles = TASKS["maze"].generate(2, 0, 20)
    hasher = hashlib.sha256()
    for part in puzzles:
        hasher.update(part.tobytes())
    assert hasher.hexdigest().startswith("140a0b5947ff0d44a1cc3e85e09cfefb580ec76e")


def test_every_cell_hears_each_neighbour_once():
    heard = {cell: [] for cell in range(36)}
    for kind in SMALL.units:
        assert sorted(kind.ravel()) == list(range(36))
        for one, other in kind.tolist():
            heard[one].append(other)
            heard[other].append(one)
    for cell in (7, 10, 14, 28):  # inside the border, where a path may lead
        assert sorted(heard[cell]) == [cell - 6, cell - 1, cell + 1, cell + 6]


def test_text_is_read_as_it_is_written():
    board = board_of(PUZZLE)
    text = SMALL.render(board)
    rows = [text[at : at + SMALL.width] for at in range(0, SMALL.cells, SMALL.width)]
    for written in (text, "\n".join(rows), "\n".join(rows).replace(".", " ") + "\n"):
        assert np.array_equal(SMALL.parse(written), board)
    assert np.array_equal(SMALL.clues(board), np.array([one != "." for one in text]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#" * 35, "grid: has 35 cells, expected 36"),
        ("####s#" + "#" * 30, r"grid: cell 5 is 's', expected # for a wall, \. or a space, S, G"),
    ],
)
def test_other_text_is_refused(text, said):
    with pytest.raises(RequestError, match=said):
        SMALL.parse(text)
