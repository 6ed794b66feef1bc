"""A worker's death is the answer of one task."""

from __future__ import annotations

import math
import os
import time

import pytest

from detinfer.compile_audit import workers
from detinfer.compile_audit.workers import TaskError, Workers


@pytest.fixture
def pool(tmp_path):
    with Workers(1, tmp_path) as one:
        yield one


def test_a_task_that_kills_its_worker_leaves_the_others_their_answers(pool):
    tasks = [(math.sqrt, 4.0), (os._exit, 3), (math.sqrt, -1.0), (os.abort, None), (math.sqrt, 9.0)]
    answers = [next(iter(pool.map(task, [given])))[1] for task, given in tasks]
    assert answers[0] == 2.0
    assert str(answers[1]) == "died with status 3"
    assert str(answers[2]).startswith("ValueError: ")
    assert isinstance(answers[3], TaskError)  # it takes no argument; its process lives
    assert answers[4] == 3.0


def test_a_task_that_hangs_is_ended(pool, monkeypatch):
    monkeypatch.setattr(workers, "_TIMEOUT", 0.5)
    assert str(next(iter(pool.map(time.sleep, [600])))[1]) == "no answer after 0.5 s"
    monkeypatch.undo()
    assert list(pool.map(math.sqrt, [4.0])) == [(4.0, 2.0)]


def test_workers_compile_though_this_process_interprets(pool):
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert list(pool.map(os.getenv, ["TRITON_INTERPRET"])) == [("TRITON_INTERPRET", None)]


def test_every_argument_is_answered_once(tmp_path):
    with Workers(2, tmp_path) as two:
        answers = dict(two.map(math.sqrt, [1.0, 4.0, 9.0]))
    assert answers == {1.0: 1.0, 4.0: 2.0, 9.0: 3.0}
