"""The server's benchmarks still run, and find nothing wrong in a small run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow  # each serves the default model


def run(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_a_small_load_leaves_no_fault(tmp_path: Path) -> None:
    result = tmp_path / "load.json"
    flags = ("--clients", "24", "--seconds", "15", "--serve", "--max-queue-size 4 --max-num-seqs 8")
    done = run("server_load", *flags, "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {row["measure"]: row["value"] for row in json.loads(result.read_text())["rows"]}
    print(found)
    assert found["deterministic"] > 10
    assert found["429"] > 0
    assert found["hung up"] > 0
    assert found["garbage"] > 0
    assert found["faults"] == 0


def test_http_gives_the_digests_of_offline(tmp_path: Path) -> None:
    result = tmp_path / "overhead.json"
    flags = ("--repeats", "1", "--requests", "8", "--tokens", "4", "--json", str(result))
    done = run("http_overhead", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [row["requests"] for row in json.loads(result.read_text())["rows"]]
    assert names == ["offline", "non-streaming", "streaming"]
