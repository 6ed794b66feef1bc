"""Fixtures that run ``detinfer check`` on an engine without a model."""

from __future__ import annotations

import pytest
from fake_runner import FakeRunner, fake_engine

from detinfer import cli

SMALL = ["--runs", "30", "--max-tokens", "8", "--prompt", "ABC", "--prompt", "<b>&", "--seed", "7"]


@pytest.fixture
def check(monkeypatch, capsys):
    """Runs ``detinfer check`` on an engine with the runner given; status, stdout and stderr."""

    def run(*flags, runner=None):
        engine = fake_engine(runner=runner or FakeRunner())
        with monkeypatch.context() as patch:
            patch.setattr("detinfer.engine.engine.Engine", lambda config: engine)
            patch.setenv("COLUMNS", "120")
            status = cli.main(["check", *SMALL, *flags])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def no_engine(monkeypatch):
    """For flags that must be refused before any long work starts."""

    def load(config):
        raise AssertionError("an engine was loaded")

    monkeypatch.setattr("detinfer.engine.engine.Engine", load)
