"""Disguises are the contract's, keep a puzzle a puzzle, and are gone from what is told."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_solvers import ScriptedModel, answer, puzzles
from solver_loads import alone

from detinfer.kernels import constants as c
from detinfer.kernels.cpu.stream import stream
from detinfer.recursive.params import SolveParams
from detinfer.recursive.tasks import TASKS

KEYS = [(0, 1), (7, 63), (2**64 - 1, 1), (2**63, 2)]


def drawn(task, seed, rollout):
    return task.symmetry(stream(np.uint64(seed), np.uint64(rollout)))


class Draws:
    """Rule 9b's, in Python's integers."""

    def __init__(self, seed, rollout):
        self.state = self.mix(self.mix(seed + c.SPLITMIX_GAMMA) + rollout)

    @staticmethod
    def mix(z):
        z %= 1 << 64
        z = (z ^ z >> 30) * c.SPLITMIX_MUL1 % (1 << 64)
        z = (z ^ z >> 27) * c.SPLITMIX_MUL2 % (1 << 64)
        return z ^ z >> 31

    def below(self, end):
        self.state = (self.state + c.SPLITMIX_GAMMA) % (1 << 64)
        return (self.mix(self.state) >> 32) * end >> 32

    def order(self, count):
        items = list(range(count))
        for i in range(count - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
        return items


def lines(draws, size, together):
    return [
        band * together + line
        for band in draws.order(size // together)
        for line in draws.order(together)
    ]


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("name", ["sudoku4", "sudoku6", "sudoku9"])
def test_a_sudokus_disguise_is_the_contracts(name, key):
    task, draws = TASKS[name], Draws(*key)
    rows, columns = (lines(draws, task.size, side) for side in (task.high, task.wide))
    turned = task.high == task.wide and draws.below(2)
    pairs = [(r, k) for k in columns for r in rows] if turned else [
        (r, k) for r in rows for k in columns
    ]  # fmt: skip
    values = [0, *(1 + value for value in draws.order(task.size))]
    found = drawn(task, *key)
    assert found.cells.tolist() == [row * task.size + column for row, column in pairs]
    assert found.tokens.tolist() == values


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_mazes_disguise_is_the_contracts(key):
    task = TASKS["maze"]
    turn = 1 + Draws(*key).below(7)
    square = np.arange(task.cells).reshape(task.width, -1)
    square = np.rot90(square if turn < 4 else square.T, turn % 4)
    found = drawn(task, *key)
    assert np.array_equal(found.cells, square.ravel())
    assert found.tokens.tolist() == list(range(task.vocab))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_disguise_keeps_a_puzzle_a_puzzle(name):
    task = TASKS[name]
    made = task.generate(5, 0, 6)
    for at, (board, solved) in enumerate(zip(made.boards, made.answers, strict=True)):
        symmetry = drawn(task, at, 1)
        other, right = symmetry.disguised(board), symmetry.disguised(solved)
        assert not np.array_equal(other, board)
        assert task.solutions(other) == 1
        assert task.holds(other[None], right[None]).all()
        assert np.array_equal(symmetry.undone(other), board)
        assert np.array_equal(symmetry.undone(right), solved)


def test_rollouts_are_of_disguised_boards_and_told_without_the_disguise():
    [puzzle] = puzzles("sudoku6", 1)
    task, right = puzzle.task, answer(puzzle)
    wrong = np.where(puzzle.board == 0, 1, puzzle.board).astype(np.int8)
    scripts = {puzzle.text: [(wrong, -1)] * 2}
    for rollout in (1, 2):
        symmetry = drawn(task, 9, rollout)
        shown = task.render(symmetry.disguised(puzzle.board))
        steps = [(symmetry.disguised(wrong), -1), (symmetry.disguised(right), rollout)]
        scripts[shown] = steps
    assert len(scripts) == 3
    params = SolveParams(max_steps=2, rollouts=3, seed=9)
    [solution] = alone({"m": ScriptedModel("sudoku6", scripts)}, [("m", puzzle, params)])
    assert (solution.status, solution.rollout, solution.q) == ("solved", 2, 2)
    assert solution.grid == task.render(right)
    assert (solution.puzzle, solution.clues_kept) == (puzzle.text, True)


def test_the_seed_is_in_the_disguise():
    task = TASKS["sudoku9"]
    found = {drawn(task, *key).cells.tobytes() for key in [*KEYS, (0, 2), (1, 1)]}
    assert len(found) == len(KEYS) + 2
