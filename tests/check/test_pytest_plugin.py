"""The pytest plugin in a project of its own, as pytest runs it there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"

CONFTEST = """
import leaks
import pytest
from fake_runner import FakeRunner, fake_engine
from detinfer import LLM

@pytest.fixture(scope="session")
def deterministic_llm():
    return LLM(engine=fake_engine(runner={runner}))
"""

TESTS = """
def test_answers_are_reproducible(assert_reproducible):
    result = assert_reproducible(["ABC", "DEF"], runs=40, seed=7)
    assert result.runs == 80

def test_no_bit_has_moved(deterministic_llm, golden_digest):
    for prompt in ("ABC", "DEF"):
        [answer] = deterministic_llm.generate(prompt)
        golden_digest(answer, prompt)
"""
KEYS = [f"test_model.py::test_no_bit_has_moved {prompt}" for prompt in ("ABC", "DEF")]


def run(folder, *flags):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    plain = ("-p", "detinfer.pytest_plugin", "-q", "--tb=short", "--import-mode=importlib")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, *flags],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """Five projects, of which the first's digests were kept, and what pytest says of all."""
    root = tmp_path_factory.mktemp("projects")
    runners = dict.fromkeys(("kept", "moved", "spoiled", "new"), "FakeRunner()")
    for name, runner in {**runners, "leaking": "leaks.Token()"}.items():
        (root / name).mkdir()
        (root / name / "conftest.py").write_text(CONFTEST.format(runner=runner))
        (root / name / "test_model.py").write_text(TESTS)
    status, out = run(root, "--update-golden-digests", "kept")
    assert status == 0, out
    kept = json.loads((root / "kept" / "golden_digests.json").read_text())
    assert sorted(kept) == KEYS
    kept[KEYS[1]] = {"digest": "0" * 64, "fingerprint": "other"}
    (root / "moved" / "golden_digests.json").write_text(json.dumps(kept))
    (root / "spoiled" / "golden_digests.json").write_text("[]")
    status, out = run(root)
    assert status == 1
    return out


def test_what_was_kept_passes_and_nothing_is_kept_unasked(projects):
    assert "kept/test_model.py" not in projects
    assert "5 failed, 5 passed" in projects
    assert f"new/golden_digests.json has no digest of {KEYS[0]!r}: run pytest --up" in projects


def test_a_bit_that_moved_is_told(projects):
    assert f"{KEYS[1]}: digest" in projects
    assert f"expected {'0' * 64} by other" in projects
    assert "spoiled/golden_digests.json: not a file of golden digests" in projects


def test_an_answer_that_follows_its_load_is_told(projects):
    assert "not reproducible: up to" in projects
    assert "token 4 of the answer is the first that differs" in projects
    assert "leaking/test_model.py::test_answers_are_reproducible" in projects


def test_pytest_finds_the_plugin_where_detinfer_is_installed():
    found = {one.name: one.value for one in entry_points(group="pytest11")}
    assert found["detinfer"] == "detinfer.pytest_plugin"
