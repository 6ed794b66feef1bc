"""A training is a function of its seed, stopped and taken up again or not; and it learns."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from detinfer.recursive import train
from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.training import recipes
from detinfer.recursive.training.recipe import Recipe
from detinfer.recursive.weights import load_weights

TINY = (
    RecursiveConfig("sudoku4", 5, 16, 24, "units", 3, 32),
    Recipe(50, batch=32, pool=300),
    Recipe(10, batch=32, pool=300),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "sudoku4", TINY)
    monkeypatch.setattr(train, "EVERY", 20)


def trained(folder, *options):
    # One thread: two wait for one another wherever other work runs beside them.
    command = ["sudoku4", "--out", str(folder), "--tests", "50", "--threads", "1", *options]
    assert train.main(command) == 0
    return json.loads((folder / "card.json").read_text())


def test_a_seed_decides_every_weight(tmp_path):
    one, again = trained(tmp_path / "one"), trained(tmp_path / "again")
    other = trained(tmp_path / "other", "--seed", "1")
    assert one["digest"] == again["digest"] != other["digest"]
    config, _ = load_weights(tmp_path / "one" / "weights.safetensors")
    assert config == TINY[0]


@pytest.mark.parametrize(("stop", "goes_on"), [(31, 20), (5, 0)])
def test_a_training_that_was_stopped_ends_with_the_same_weights(
    stop, goes_on, tmp_path, monkeypatch
):
    whole = trained(tmp_path / "whole")
    advance = train.Trainer.advance

    def killed(self):
        if self.step == stop:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(train.Trainer, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped")
    started = []

    def watched(self):
        started.append(self.step)
        return advance(self)

    monkeypatch.setattr(train.Trainer, "advance", watched)
    resumed = trained(tmp_path / "stopped")
    assert started[0] == goes_on, "it went on from its last checkpoint"
    assert resumed["digest"] == whole["digest"]


REFUSAL = "has a checkpoint of another model, recipe, seed or threads"


def refused(folder, capsys, *options):
    assert train.main(["sudoku4", "--out", str(folder), "--threads", "1", *options]) == 2
    return REFUSAL in capsys.readouterr().err


def test_a_checkpoint_of_another_training_is_refused(tmp_path, capsys, monkeypatch):
    trained(tmp_path)
    assert refused(tmp_path, capsys, "--seed", "1")
    assert refused(tmp_path, capsys, "--threads", "2")
    config, first, second = TINY
    for other in (
        (config, replace(first, rate=1e-3), second),  # a stage that was over long before
        (config, first, replace(second, rate=1e-3)),
        (replace(config, cycles=3), first, second),
    ):
        monkeypatch.setitem(recipes.RECIPES, "sudoku4", other)
        assert refused(tmp_path, capsys)


def test_more_threads_than_cores_are_refused_before_anything_is_made(tmp_path, capsys):
    assert train.main(["sudoku4", "--out", str(tmp_path / "out"), "--threads", "999"]) == 2
    assert capsys.readouterr().err.startswith("detinfer: threads: got 999, expected 1..")
    assert not (tmp_path / "out").exists()


def test_a_training_that_is_over_goes_on_with_a_new_stage(tmp_path, monkeypatch):
    config, first, _ = TINY
    whole = trained(tmp_path / "whole")
    monkeypatch.setitem(recipes.RECIPES, "sudoku4", (config, first))
    trained(tmp_path / "stages")
    monkeypatch.setitem(recipes.RECIPES, "sudoku4", TINY)
    assert trained(tmp_path / "stages")["digest"] == whole["digest"]


def test_it_learns(tmp_path):
    card = trained(tmp_path, "--steps", "175")
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["cells"] > log[0]["cells"] + 0.2
    assert card["by_steps"][0] < card["by_steps"][-1] > 0.8, "steps improve an answer"
