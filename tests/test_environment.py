from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile

import numba
import pytest
import torch
from control_words import foreign_word

import detinfer
from detinfer import cli, environment, folders
from detinfer.cli import doctor
from detinfer.errors import ConfigError


def test_this_environment_is_fine():
    environment.check_environment()


def test_flushed_subnormals_are_refused_and_kept_ones_are_not():
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        with pytest.raises(ConfigError, match="flushes subnormal numbers to zero"):
            environment.check_rounding()
    finally:
        torch.set_flush_denormal(False)
    environment.check_rounding()


@pytest.mark.parametrize("mode", ["upward", "downward", "toward zero"])
def test_another_rounding_is_refused(mode):
    with foreign_word(mode), pytest.raises(ConfigError, match="does not round to nearest"):
        environment.check_rounding()
    environment.check_rounding()


def test_workqueue_is_refused_with_the_fix(monkeypatch):
    def not_launched():
        raise ValueError("Threading layer is not initialized.")

    monkeypatch.setattr(numba, "threading_layer", not_launched)
    assert environment.check_threading_layer() in environment.SAFE_LAYERS
    monkeypatch.setattr(environment, "_importable", lambda module: False)
    with pytest.raises(ConfigError, match="install the system's OpenMP library"):
        environment.check_threading_layer()


def test_workqueue_asked_for_by_name_is_refused_in_a_fresh_process():
    script = "from detinfer.environment import check_threading_layer; check_threading_layer()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"NUMBA_THREADING_LAYER": "workqueue", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert "NUMBA_THREADING_LAYER is 'workqueue', expected omp or tbb" in done.stderr


def test_layer_that_already_runs_decides(monkeypatch):
    monkeypatch.setattr(numba, "threading_layer", lambda: "workqueue")
    with pytest.raises(ConfigError, match="workqueue"):
        environment.check_threading_layer()


def test_foreign_distribution_of_our_name_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.7")
    with pytest.raises(ConfigError, match=r"another package named detinfer \(0\.0\.7\)"):
        environment.check_package()


def test_foreign_folder_on_the_package_path_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(detinfer, "__path__", [*detinfer.__path__, str(tmp_path)])
    with pytest.raises(ConfigError, match="another detinfer at"):
        environment.check_package()


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DETINFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_doctor_is_0_when_all_is_well_and_creates_nothing(empty_cache, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    values = {one["name"]: one["value"] for one in report["findings"]}
    assert report["ok"] is True
    assert values["threading layer"] in environment.SAFE_LAYERS
    assert values["profile"].startswith("portable")
    assert "not fetched yet" in values["default model"]
    assert "torch " in values["libraries"]
    assert not empty_cache.exists()


def test_doctor_is_2_and_names_each_problem(empty_cache, monkeypatch, capsys):
    def foreign():
        raise ConfigError("environment: foreign [really]")

    monkeypatch.setattr(doctor, "check_package", foreign)
    assert cli.main(["doctor"]) == 2
    assert "foreign [really]" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    problems = {one["name"]: one["problem"] for one in report["findings"] if one["problem"]}
    assert problems == {"detinfer": "environment: foreign [really]"}


# A folder that nobody can write to, root neither.
UNWRITABLE = "/proc/detinfer"
REFUSAL = f"DETINFER_CACHE: cannot write to {UNWRITABLE} ("
WAY_OUT = "): set it to a folder that can be written, such as a mounted volume"


def test_doctor_says_when_the_cache_cannot_be_written(monkeypatch):
    monkeypatch.setenv("DETINFER_CACHE", UNWRITABLE)
    problem = str(doctor._cache().problem)
    assert problem.startswith(REFUSAL)
    assert problem.endswith(WAY_OUT)


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "detinfer.cli", "serve", "--port", "0"],
        ["-m", "detinfer.cli", "generate", "--prompt", "a"],
        ["-c", "from detinfer import LLM"],
    ],
    ids=["serve", "generate", "LLM"],
)
def test_a_cache_that_cannot_be_written_is_said_in_a_line_before_anything_loads(command):
    environ = {**os.environ, "DETINFER_CACHE": UNWRITABLE}
    done = subprocess.run([sys.executable, *command], env=environ, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert REFUSAL in last
    assert last.endswith(WAY_OUT)
    assert "numba" not in done.stderr
    if "-c" not in command:
        assert (done.returncode, done.stderr) == (2, f"{last}\n")


def test_temporary_files_go_to_the_cache_where_they_have_no_other_place(monkeypatch, tmp_path):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setenv("DETINFER_CACHE", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "unset")
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    folders.check_folders()
    assert (os.environ["TMPDIR"], tempfile.tempdir) == ("unset", "/tmp")
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    folders.check_folders()
    assert os.environ["TMPDIR"] == tempfile.tempdir == str(tmp_path / "tmp")
    assert (tmp_path / "tmp").is_dir()
