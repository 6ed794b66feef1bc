"""A cold start says what it compiles, and for how long."""

import re
import sys
import time

import numba
import pytest

from detinfer.kernels.cpu import jit
from detinfer.runner import compile_progress as module
from detinfer.runner.compile_progress import compile_progress

BEGIN = "detinfer: compiling kernels for this CPU (once)\n"


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(jit, "_FOLDER", tmp_path / "kernels")


def two_kernels():
    @jit.kernel
    def inner(x):
        return x + 1

    @jit.kernel
    def outer(x):
        return inner(x) * 2

    return outer


def test_two_lines_when_nobody_watches_and_none_the_next_time(capfd):
    with compile_progress():
        assert two_kernels()(1) == 4
        assert capfd.readouterr().err == BEGIN
    assert re.fullmatch(r"detinfer: compiled 2 kernels in \d+ s\n", capfd.readouterr().err)
    with compile_progress():
        assert two_kernels()(1) == 4
    assert capfd.readouterr().err == ""


def test_a_clock_runs_on_a_terminal(capfd, monkeypatch):
    def shown():
        seen.append(capfd.readouterr().err)
        return "".join(seen)

    seen = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(module, "_TICK", 0.001)
    with compile_progress():
        two_kernels()(1)
        deadline = time.monotonic() + 60
        while "…" not in shown() and time.monotonic() < deadline:
            time.sleep(0.01)
    first, *_, last = shown().split("\r")[1:]
    name = "test_compile_progress outer"  # who asked for the others
    assert re.fullmatch(rf"{re.escape(BEGIN.strip())}: {name} … \d+ s\x1b\[K", first)
    assert re.fullmatch(r"detinfer: compiled 2 kernels in \d+ s\x1b\[K\n", last)


def test_a_failed_compilation_and_other_peoples_functions(capfd):
    @jit.kernel
    def broken(x):
        return x.no_such_thing

    with pytest.raises(numba.TypingError), compile_progress():
        broken(1)
    err = capfd.readouterr().err
    assert re.fullmatch(rf"{re.escape(BEGIN)}detinfer: compiled 1 kernel in \d+ s\n", err)
    with compile_progress():
        numba.njit(lambda x: x + 1)(1)
    assert capfd.readouterr().err == ""
