"""The models of the package are those their cards tell of, and their digests stand still."""

from __future__ import annotations

import numpy as np
import pytest
from golden_solves import digests, fingerprint, record

from detinfer import Solver
from detinfer.recursive import shipped
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.tasks import TASKS
from detinfer.recursive.training.data import TEST

NAMES = ["trm-maze", "trm-sudoku6", "trm-sudoku9"]


def test_these_are_the_models_that_are_shipped():
    assert shipped.names() == NAMES  # written down: with none there, no test below would run


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_the_card(name):
    card, model = shipped.card(name), RecursiveModel.load(name)
    assert card["digest"] == model.weights_digest
    assert card["task"] == model.task.name
    assert len(card["curve"]) == sum(recipe["steps"] for recipe in card["recipes"]) / 100


def test_all_of_them_are_small():
    assert sum(shipped.path(name).stat().st_size for name in NAMES) < 3 << 20


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_digests_are_those_of_the_record(name, threads):
    assert digests(name, threads=threads) == record()[f"{name} {fingerprint(name)}"]


@pytest.mark.parametrize("name", NAMES)
def test_it_solves_what_its_card_says(name):
    card = shipped.card(name)
    task = TASKS[card["task"]]
    puzzles = task.generate(TEST, 0, 200)
    solutions = Solver(name).solve([task.render(board) for board in puzzles.boards])
    solved = np.mean([one.status == "solved" for one in solutions])
    deviation = np.sqrt(card["verified"] * (1 - card["verified"]) / len(solutions))
    assert solved >= card["verified"] - 4 * deviation
