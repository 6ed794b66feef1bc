"""``detinfer bench`` runs a checkout's scripts with their own options, or says what it needs."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from detinfer import cli
from detinfer.cli import bench


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))


@pytest.mark.parametrize("name", cli.BENCHMARKS)
def test_every_name_is_a_script(name):
    spec = importlib.util.find_spec(f"benchmarks.{name}")
    assert spec is not None
    if spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"benchmarks.{name}.__main__")
        assert spec is not None


def test_a_script_gets_its_own_options(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "benchmarks.scaling", raising=False)
    with pytest.raises(SystemExit) as exited:
        cli.main(["bench", "scaling", "--most", "many"])
    assert exited.value.code == 2
    assert "detinfer bench scaling: error: argument --most: invalid int" in capsys.readouterr().err


def test_without_a_checkout_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site/detinfer/cli/bench.py"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "peers"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"detinfer: error: bench: found no benchmarks/ in {tmp_path / 'site'} or {tmp_path}, "
        "expected a checkout of the source\n"
    )
