"""Making a model's folder in a process of its own: stopped midway, or without disk space."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

_STALLED = """
import contextlib, importlib, sys, time
from detinfer.checkpoint.loader import resolve_model
@contextlib.contextmanager
def stall(wanted):
    def report(phase, done, total):
        if 0.3 < done / total < 0.9:
            print(phase, flush=True)
            time.sleep(120)
    yield report
importlib.import_module(sys.argv[1]).progress_bar = stall
resolve_model(sys.argv[2], quantize=sys.argv[3] or None)
"""
_FULL = """
import resource, sys
import torch, transformers
from detinfer.errors import ModelLoadError
from detinfer.checkpoint.loader import resolve_model
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    resolve_model(sys.argv[1], quantize=sys.argv[2] or None)
except ModelLoadError as error:
    print(error)
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Run code, which may import what tests share, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_midway(module: str, model: object, quantize: str = "") -> str:
    """Kill the making of a model's folder when it is half done; return what it was at.

    Args:
        module: that shows the progress.
    """
    child = python(_STALLED, module, str(model), quantize)
    assert child.stdout is not None
    try:
        return child.stdout.readline()
    finally:
        child.kill()
        child.communicate(timeout=60)


def without_disk_space(model: object, quantize: str = "") -> None:
    """Make a model's folder where files end at 100 kB: one line must tell."""
    out, errors = python(_FULL, str(model), quantize).communicate(timeout=120)
    assert "no disk space left" in out, errors
    assert out.count("\n") == 1
