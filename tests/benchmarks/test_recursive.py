"""The benchmark of recursive models: its figures by hand, and all of it on a tiny random model."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks import recursive, recursive_speed
from benchmarks.recursive_picture import Way, picture
from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.tasks import TASKS, Puzzles
from detinfer.recursive.training.trainer import initial_weights
from detinfer.recursive.weights import save_weights

TASK = TASKS["sudoku4"]
CONFIG = RecursiveConfig("sudoku4", 5, 16, 24, "units", 3, 32)


class Scripted:
    """A model that gives each puzzle's board until a step of its own, then the answer."""

    name, task = "scripted", TASK

    def __init__(self, puzzles: Puzzles, solved_at: list[int], q: list[list[float]]) -> None:
        self.puzzles, self.solved_at, self.q = puzzles, solved_at, q

    def start(self, count):
        return np.zeros((count, 16, 1), np.float32), np.zeros((count, 16, 1), np.float32)

    def step(self, boards, y, z):
        y += 1
        step = int(y[0, 0, 0])
        at = [self.puzzles.boards.tolist().index(board.tolist()) for board in boards]
        grids = [
            self.puzzles.answers[one] if step >= self.solved_at[one] else self.puzzles.boards[one]
            for one in at
        ]
        return np.array(grids), np.array([self.q[one][step - 1] for one in at], np.float32)


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(recursive, "STEPS", (1, 2, 4))
    monkeypatch.setattr(recursive, "LIMIT", 4)
    monkeypatch.setattr(recursive, "BATCH", 2)
    puzzles = TASK.generate(3, 0, 3)
    q = [[-1, 1, 1, 1], [1, 1, 1, 1], [-1, -1, -1, -1]]
    return Scripted(puzzles, [1, 3, 9], q), puzzles


def test_accuracy_by_hand(scripted):
    model, puzzles = scripted
    by_steps, by_halt, grids = recursive.accuracy(model, puzzles)
    assert grids.shape == (4, 3, 16)
    assert [(row["steps"], round(3 * row["exact"])) for row in by_steps] == [(1, 1), (2, 1), (4, 2)]
    told = {row["halt"]: (round(3 * row["exact"]), row["mean_steps"]) for row in by_halt}
    assert told == {
        "fixed": (2, 4),
        "q": (1, pytest.approx((2 + 1 + 4) / 3)),  # the second was sure too early
        "verified": (2, pytest.approx((2 + 3 + 4) / 3)),
        "stable": (1, pytest.approx((2 + 2 + 2) / 3)),
    }


def test_the_way_that_is_drawn_is_the_longest_that_ends(scripted):
    model, puzzles = scripted
    _, _, grids = recursive.accuracy(model, puzzles)
    way = recursive.way(model, puzzles, grids)
    assert way.answer == TASK.render(puzzles.answers[1])
    assert way.boards == [TASK.render(puzzles.boards[1])] * 3 + [way.answer]


def test_a_picture_has_a_board_a_step_and_a_curve_a_model():
    maze = Way("trm-maze", 3, ["###S.G###", "###SoG###"], "###SoG###")
    svg = picture("t", {"a": [(1, 0.0), (2, 0.5)], "b": [(1, 0.1), (2, 1.0)]}, [maze])
    root = ElementTree.fromstring(svg)
    names = [one.tag.rpartition("}")[2] for one in root.iter()]
    assert names.count("polyline") == 2
    texts = [one.text for one in root.iter() if one.tag.endswith("text")]
    assert [text for text in texts if text in ("S", "o", "G")] == ["S", "G", "S", "o", "G"]
    assert "step 1" in texts


def test_all_of_it_on_a_random_model(tmp_path, monkeypatch):
    monkeypatch.setattr(recursive, "STEPS", (1, 2))
    monkeypatch.setattr(recursive, "LIMIT", 2)
    rollouts = dataclasses.replace(recursive.ROLLOUTS, max_steps=2, rollouts=2)
    monkeypatch.setattr(recursive, "ROLLOUTS", rollouts)
    monkeypatch.setattr(recursive_speed, "BATCHES", (1, 2))
    monkeypatch.setattr(recursive_speed, "TIMED", 1)
    path = tmp_path / "tiny.safetensors"
    save_weights(path, CONFIG, initial_weights(CONFIG, torch.Generator().manual_seed(0)))
    result, [way] = recursive.measured([str(path)], count=6, curve=3, repeats=1)
    [solved] = result["solved"]
    assert (solved["model"], solved["puzzles"], solved["wrong_but_solved"]) == ("tiny", 6, 0)
    assert [row["batch"] for row in result["speed"]] == [1, 2]
    assert all(row["deterministic"] > 0 and row["pytorch"] > 0 for row in result["speed"])
    assert sum(row["puzzles"] for row in result["by_difficulty"]) == 6
    assert result["adaptive"][0]["fixed_exact"] == solved["exact"] == 0
    text = "\n".join(recursive.parts(result))
    assert text.count("| tiny |") == sum(len(rows) for rows in result.values())
    assert len(way.boards) == 3, "an unsolved board's way is drawn as far as it goes"
