"""``detinfer check --solver NAME --url URL``: a served solver, under loads of many clients."""

from __future__ import annotations

import contextlib
import json

import pytest
from fake_engine import FakeEngine
from loopback import served_on_a_thread
from tiny_solver import TinySolver, chaotic_host

from detinfer import cli
from detinfer.check.solver_check import SolverCheck, given_targets
from detinfer.check.solver_server_subject import SolverServerSubject
from detinfer.errors import DetinferError, RequestError

TASKS = ("sudoku4", "sudoku6")


@contextlib.contextmanager
def served(solver):
    """A server of solvers beside a language model; its address."""
    with served_on_a_thread(FakeEngine()) as (port, service):
        service.solver, service.serves = solver, ("language model", "solvers")
        yield f"http://127.0.0.1:{port}"


def check(url, modes=("deterministic",), runs=4):
    subject = SolverServerSubject(url, "sudoku4", 6)
    return SolverCheck(subject, subject.targets(), runs=runs, modes=modes, seed=3)


def test_every_run_is_what_its_puzzle_gives_alone_whoever_else_is_served():
    solver = TinySolver(solvers=chaotic_host(*TASKS), delay=0.001)
    with served(solver) as url:
        checking = check(url, ("deterministic", "fast"))
        result = checking.run()
    assert result.reproducible
    assert result.runs == 6 * 4 + 2
    assert result.fingerprint == "detinfer-test-sudoku4"
    assert dict(result.parts) == {"kernels": "scripted"}
    assert result.judged.engine["steps"] > 16
    assert not result.by_mode["fast"].reproducible  # so the loads do tell
    # Strangers were there, and what some gave up is gone.
    assert {model for model, _, _ in solver.asked} == {*TASKS}
    assert {deterministic for _, _, deterministic in solver.asked} == {True, False}
    assert {params.halt for _, params, _ in solver.asked} == {"verified", "q", "fixed", "stable"}
    assert not solver.open


def test_answers_that_follow_the_batch_are_found():
    with served(TinySolver(solvers=chaotic_host(*TASKS, defect=True), delay=0.001)) as url:
        result = check(url).run()
    assert not result.reproducible
    assert result.unique_digests > 1


def test_alone_there_are_no_strangers():
    solver = TinySolver(solvers=chaotic_host("sudoku4"))
    with served(solver) as url:
        assert check(url, runs=2).run().reproducible
    assert {model for model, _, _ in solver.asked} == {"sudoku4"}


def test_the_command_checks_a_served_solver_by_its_name(tmp_path, capsys):
    report = tmp_path / "report.json"
    flags = ["--runs", "2", "--concurrency", "4", "--seed", "1", "--report", str(report)]
    with served(TinySolver(solvers=chaotic_host(*TASKS))) as url:
        assert cli.main(["check", "--solver", "sudoku4", "--url", url, *flags]) == 0
        assert "1 unique digest for each of 8 puzzles" in capsys.readouterr().out
        assert json.loads(report.read_text())["source"] == f"sudoku4 at {url}"
        assert cli.main(["check", "--solver", "another", "--url", url, *flags]) == 2
        assert "--solver: got 'another', the server has sudoku4, sudoku6" in capsys.readouterr().err
        assert cli.main(["check", "--solver", "sudoku4", "--url", url, "model", *flags]) == 2
        assert "MODEL: got it beside" in capsys.readouterr().err


def test_a_server_without_solvers_is_told():
    with (
        served_on_a_thread(FakeEngine()) as (port, _),
        pytest.raises(DetinferError, match="serves no solver that is known here"),
    ):
        SolverServerSubject(f"http://127.0.0.1:{port}", "sudoku4")


def test_a_puzzle_that_is_none_is_named():
    with served(TinySolver(solvers=chaotic_host("sudoku4"))) as url:
        subject = SolverServerSubject(url, "sudoku4", 2)
        checking = SolverCheck(subject, given_targets(["123"]), runs=1)
        with pytest.raises(RequestError, match=r"puzzle 1 of 1: .*grid: has 3 cells, expected 16"):
            checking.run()


def test_another_model_in_its_place_is_told():
    solver = TinySolver(solvers=chaotic_host("sudoku4"))
    with served(solver) as url:
        checking = check(url, runs=2)
        checking.subject.fingerprint = "detinfer-test-before"
        with pytest.raises(DetinferError, match="its fingerprint changed from detinfer-test-bef"):
            checking.run()
