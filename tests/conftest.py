"""Fixtures of the whole suite."""

from __future__ import annotations

import os

import pytest

# Read when a kernel is decorated: Triton kernels run in the interpreter, on CPU tensors.
os.environ["TRITON_INTERPRET"] = "1"

from detinfer.models.loader import ModelFiles, resolve_model


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
