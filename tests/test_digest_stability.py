"""One digest on one thread or two, on another instruction set, and after a restart."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from detinfer.checkpoint.loader import ModelFiles
from detinfer.machine import usable_cores

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "detinfer.cli", "generate", "--json", "--max-tokens", "24"]
PROMPT = ["--prompt", "A list of three fruits:\n1."]


def generate(*flags: str, **environment: str) -> dict[str, object]:
    """One answer by a process of its own."""
    done = subprocess.run(
        [*COMMAND, *PROMPT, *flags],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module", params=["dequantized", "packed"])
def weights(request: pytest.FixtureRequest) -> list[str]:
    """The flag under which a test's answers are made."""
    return ["--weights", request.param]


@pytest.fixture(scope="module")
def first(default_model: ModelFiles, weights: list[str]) -> dict[str, object]:
    return generate(*weights)


@pytest.mark.parametrize("threads", range(1, min(usable_cores(), 4) + 1))
def test_threads(first: dict[str, object], weights: list[str], threads: int) -> None:
    assert generate(*weights, "--threads", str(threads))["digest"] == first["digest"]


def test_modules_plan(first: dict[str, object], weights: list[str]) -> None:
    assert generate(*weights, "--plan", "modules")["digest"] == first["digest"]


def test_avx2(first: dict[str, object], weights: list[str]) -> None:
    # Without the second variable Numba adds this CPU's own features to the named one.
    other = generate(*weights, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="")
    assert other["digest"] == first["digest"]
    assert other["system_fingerprint"] == first["system_fingerprint"]


def test_another_prompt_has_another_digest(first: dict[str, object], weights: list[str]) -> None:
    assert generate(*weights, "--prompt", "A list of four fruits:\n1.")["digest"] != first["digest"]
