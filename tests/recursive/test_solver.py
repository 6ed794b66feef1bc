"""Solver: puzzles in, solutions out, each by the model that reads its board."""

from __future__ import annotations

import json

import pytest
from recursive_models import CONFIGS, weights_of
from scripted_solvers import ScriptedModel, answer, puzzles

from detinfer.errors import ConfigError, ModelLoadError, RequestError
from detinfer.recursive import shipped, solver
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.params import SolveParams
from detinfer.recursive.result import Solution, TraceStep
from detinfer.recursive.solver import Solver
from detinfer.recursive.weights import save_weights

SMALL, LARGE = puzzles("sudoku4", 5), puzzles("sudoku6", 2)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Two shipped models whose steps are written down; the list of those that were loaded."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    models, loaded = {}, []
    for task, some in (("sudoku4", SMALL), ("sudoku6", LARGE)):
        # The first puzzle is solved at once, the second at the second step, and so on.
        steps = {
            one.text: [(one.board, -1.0)] * at + [(answer(one), 1.0)] for at, one in enumerate(some)
        }
        models[f"trm-{task}"] = ScriptedModel(task, steps)
        (tmp_path / f"trm-{task}.safetensors").touch()
        (tmp_path / f"trm-{task}.json").write_text(json.dumps({"task": task}))

    class Loaded:
        @staticmethod
        def load(source, **settings):
            loaded.append((source, settings))
            return models[source]

    monkeypatch.setattr(solver, "RecursiveModel", Loaded)
    return loaded


def test_answers_come_in_the_puzzles_order_by_the_model_that_reads_them(scripted):
    mixed = [SMALL[2], LARGE[1], SMALL[0], LARGE[0]]
    ours = Solver(threads=1, deterministic=False)
    assert scripted == []
    solutions = ours.solve([one.text for one in mixed])
    assert [one.grid for one in solutions] == [one.task.render(answer(one)) for one in mixed]
    assert [one.steps for one in solutions] == [3, 2, 1, 1]
    settings = {"deterministic": False, "threads": 1}
    assert scripted == [("trm-sudoku4", settings), ("trm-sudoku6", settings)]
    assert ours.solve(SMALL[2].text) == solutions[:1]
    assert ours.solve([]) == []
    assert len(scripted) == 2


def test_a_stream_tells_of_every_step_and_ends_with_the_solution(scripted):
    ours = Solver("trm-sudoku4")
    told = list(ours.stream(SMALL[2].text))
    assert [type(one) for one in told] == [TraceStep] * 3 + [Solution]
    assert [one.step for one in told[:3]] == [1, 2, 3]
    assert told[3].trace == told[:3]
    assert told[3].digest == ours.solve(SMALL[2].text)[0].digest
    next(ours.stream(SMALL[4].text))  # whoever stops listening leaves nothing behind
    assert ours.solve(SMALL[2].text)[0].digest == told[3].digest


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([SMALL[0].text] * 4097, "puzzles: got 4097, expected at most 4096 a call"),
        ([SMALL[0].text, "." * 16], r"puzzles\[1\]: grid: got no clue at all"),
        ("." * 16, "^grid: got no clue at all"),
        ("12", r"grid: has 2 cells, expected 16 \(trm-sudoku4\), 36 \(trm-sudoku6\)"),
        ("5" + "." * 15, "grid: cell 1 is '5', expected"),
        (SMALL[0].text + "9" * 20, "grid: cell"),
        ([SMALL[0].text, 7], r"puzzles\[1\]: grid: got int, expected a string"),
    ],
)
def test_what_cannot_be_solved_is_refused_before_anything_runs(scripted, asked, said):
    ours = Solver()
    with pytest.raises(RequestError, match=said):
        ours.solve(asked)


def test_settings_that_cannot_work_are_refused(scripted):
    for value in (0, True, 1.5):
        with pytest.raises(ConfigError, match=r"max_batch: got .*, expected an integer"):
            Solver("trm-sudoku4", max_batch=value)


def test_a_copy_without_weights_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(ModelLoadError, match="model: got none, and this copy of detinfer has no"):
        Solver().solve(SMALL[0].text)


def test_a_file_is_loaded_and_fast_answers_say_so_in_their_digest(tmp_path):
    config = CONFIGS["units"]
    save_weights(tmp_path / "ours.safetensors", config, weights_of(config))
    texts, params = [one.text for one in SMALL[:3]], SolveParams(max_steps=2, halt="fixed")
    one = Solver(tmp_path / "ours.safetensors").solve(texts, params)
    assert one == Solver(str(tmp_path / "ours.safetensors"), max_batch=1).solve(texts, params)
    fast = Solver(tmp_path / "ours.safetensors", deterministic=False).solve(texts, params)
    assert not {a.digest for a in one} & {a.digest for a in fast}
    assert RecursiveModel.load(tmp_path / "ours.safetensors").name == "ours"
