"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when a kernel is decorated: Triton kernels run in the interpreter, on CPU tensors.
os.environ["TRITON_INTERPRET"] = "1"

from detinfer.checkpoint.loader import ModelFiles, resolve_model

# A deprecated argument of a model's forward is told of the line in nn.Module that calls it for us.
OURS = ("detinfer", "benchmarks", r"torch\.nn\.modules\.module")


def pytest_configure(config: pytest.Config) -> None:
    """A warning at a line of ours is an error; one at a line of another package is not."""
    tests = [path.stem for path in Path(__file__).parent.rglob("*.py")]
    for module in (*OURS, *tests):
        config.addinivalue_line("filterwarnings", rf"error:::{module}(\.|$)")


@pytest.fixture(scope="session")
def default_model() -> ModelFiles:
    """The real default model, from the shared cache: fetched once for a machine, not for a run."""
    return resolve_model(None)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DETINFER_CACHE", str(folder))
    return folder
