"""``detinfer check --solver``: the same answer and halting step under every drawn load."""

from __future__ import annotations

import json

import pytest
import torch
from recursive_models import CONFIGS, weights_of

from detinfer import cli
from detinfer.check.solver_check import (
    SolverCheck,
    draw_puzzle_loads,
    given_targets,
    puzzle_targets,
)
from detinfer.check.solver_subject import SolverSubject
from detinfer.check.target import Bounds
from detinfer.errors import RequestError
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.weights import save_weights

BOUNDS = Bounds(5, 16, 6, True, 2, other_models=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("solver") / "tiny.safetensors"
    config = CONFIGS["units"]
    save_weights(path, config, weights_of(config))
    return str(path)


def check(weights, runs=6, modes=("deterministic",), seed=3):
    subject = SolverSubject(weights, 6, 2, fast="fast" in modes)
    return SolverCheck(subject, subject.targets(), runs=runs, modes=modes, seed=seed)


def test_every_run_is_what_its_puzzle_gives_alone(weights):
    checking = check(weights)
    last = list(checking.progress())[-1]
    result = checking.result()
    assert result.reproducible
    assert result.unique_digests == last.unique_digests == 1
    assert len(result.prompts) == 8
    assert result.runs == last.runs == 6 * 6 + 2 * 2  # of rollouts a quarter
    assert result.source == "tiny"
    ends = {prompt.target.name: prompt.expected.finish_reason for prompt in result.prompts}
    assert "fixed after 16 steps" in ends["fixed"]
    assert "rollout" in ends["rollouts"]
    assert "rollout" in ends["noise"]


def see_the_batch(monkeypatch, least):
    """A model whose states depend, in their last bit, on how many puzzles share a step."""
    step = RecursiveModel.step

    def defective(self, boards, y, z):
        answer = step(self, boards, y, z)
        if len(boards) >= least:
            z[:, 0, 0] = torch.nextafter(torch.from_numpy(z[:, 0, 0]), torch.tensor(9e9)).numpy()
        return answer

    monkeypatch.setattr(RecursiveModel, "step", defective)


def test_a_bit_that_follows_the_batch_is_found(monkeypatch, weights):
    see_the_batch(monkeypatch, least=2)
    checking = check(weights)
    checking.run()
    result = checking.result()
    assert not result.reproducible
    assert result.unique_digests > 1
    first = result.first_divergence
    assert first is not None
    assert first.expected.digest != first.got.digest
    assert first.what.startswith(("cell ", "the grids agree", "grids and ends agree"))


def test_loads_are_a_function_of_their_seed_and_have_all_that_was_asked():
    targets = puzzle_targets([f"board {i}" for i in range(9)], list(range(9)))
    assert targets[0].prompt == "board 0"
    assert targets[1].prompt == "board 8"
    one, other = (list(draw_puzzle_loads(targets, 40, BOUNDS, 5, True)) for _ in range(2))
    assert one == other
    assert one != list(draw_puzzle_loads(targets, 40, BOUNDS, 6, True))
    rows = [row for load in one for row in load.rows]
    for index, target in enumerate(targets):
        assert sum(row.target == index for row in rows) == target.runs_of(40)
    assert {load.placement.threads for load in one} == {1, 2}
    assert any(load.placement.max_batch < len(load.rows) for load in one)
    assert any(row.arrival for row in rows)
    assert any(row.stranger for row in rows)
    assert any(row.abort_after is not None for row in rows if row.target is None)
    assert all(
        row.abort_after is None and not row.stranger for row in rows if row.target is not None
    )
    assert all(2 * load.targets >= len(load.rows) for load in one)
    fast = draw_puzzle_loads(targets, 40, BOUNDS, 5, False)
    assert [load.rows for load in fast] == [load.rows for load in one]


def test_the_command_says_what_it_found_and_writes_it_down(weights, tmp_path, capsys):
    report = tmp_path / "report.json"
    flags = ["--runs", "3", "--concurrency", "5", "--mode", "both", "--seed", "1", "--threads", "2"]
    status = cli.main(["check", "--solver", weights, *flags, "--report", str(report)])
    out = capsys.readouterr().out
    assert status == 0
    assert "puzzle" in out
    assert "reproducible: 1 unique digest for each of 8 puzzles" in out
    assert "fast: up to" in out
    told = json.loads(report.read_text())
    assert told["reproducible"]
    assert told["judged_on"] == "deterministic"
    assert {"deterministic", "fast"} == {*told["by_mode"]}
    assert told["by_mode"]["fast"]["prompts"][0]["params"]["halt"] == "verified"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--solver", "nothing-like-it"], "model: got 'nothing-like-it', expected one of"),
        (["--solver", "no.safetensors"], "solver: no.safetensors: no such file"),
        (["--solver", "x", "some-model"], "MODEL: got it beside --solver"),
        (["--solver", "x", "--url", "http://127.0.0.1:1"], "http://127.0.0.1:1: cannot be reached"),
        (["--solver", "x", "--url", "http://x:y"], "--url: got 'http://x:y'"),
        (["--solver", "x", "--fast-neighbours", "2"], "--fast-neighbours: got it beside --solver"),
    ],
)
def test_what_cannot_be_checked_is_refused_before_anything_loads(flags, message, capsys):
    assert cli.main(["check", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_board_of_a_users_own_that_is_none_is_named(weights):
    subject = SolverSubject(weights, 2, 1, fast=False)
    checking = SolverCheck(subject, given_targets(["123"]), runs=1)
    with pytest.raises(RequestError, match="puzzle 1 of 1: grid: has 3 cells, expected 16"):
        checking.run()
