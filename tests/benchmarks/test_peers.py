"""Peers: an engine in another process is asked, timed and ended; one that cannot load says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.peers.engine import Peer

ROOT = Path(__file__).parents[2]

ENGINE = """
import sys
from engine import serve

def load(model):
    print("a library's own words")
    if model == "none":
        raise OSError("no such model")
    return lambda prompts, tokens: {"digests": [f"{len(p)}+{tokens}" for p in prompts]}

serve(load)
"""


@pytest.fixture
def script(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks/peers"))
    path = tmp_path / "stub_peer.py"
    path.write_text(ENGINE)
    return path


def test_an_engine_is_asked_as_often_as_needed(script, tmp_path):
    peer = Peer(Path(sys.executable), script, "tiny", tmp_path / "log")
    try:
        peer.wait_loaded()
        for tokens in (1, 5):
            told = peer.generate([[1, 2, 3], [4, 5, 6]], tokens)
            assert told["digests"] == [f"3+{tokens}"] * 2
            assert 0 < told["seconds"] < 60
    finally:
        peer.close()
    assert "a library's own words" in (tmp_path / "log").read_text()


def test_one_that_cannot_load_is_missing_with_its_last_words(script, tmp_path):
    peer = Peer(Path(sys.executable), script, "none", tmp_path / "log")
    try:
        with pytest.raises(RuntimeError, match="ended with 1: OSError: no such model"):
            peer.wait_loaded()
    finally:
        peer.close()
