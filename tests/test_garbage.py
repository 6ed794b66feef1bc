"""What a start imports is made without the garbage collector, and never looked through by it."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from detinfer.garbage import uncollected

# Counts the collector's runs until the engine's imports are put out of its sight; loads nothing.
PROGRAM = """
import gc, sys
from detinfer.engine import process
assert "torch" not in sys.modules
runs = 0
def count(phase, info):
    global runs
    runs += phase == "start" and not gc.get_freeze_count()
gc.callbacks.append(count)
try:
    process.load_engine(None)
except AttributeError:
    pass  # None is no settings
assert "torch" in sys.modules and "transformers" in sys.modules
print(runs, gc.get_freeze_count() > 100_000, gc.isenabled())
"""


def test_the_collector_is_off_inside_and_on_after() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()


def test_it_is_on_again_after_an_error() -> None:
    with pytest.raises(ValueError, match="broken"), uncollected():
        raise ValueError("broken")
    assert gc.isenabled()
    gc.unfreeze()


def test_a_process_without_a_collector_stays_so() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_the_engines_imports_are_not_looked_through() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs, frozen, enabled = done.stdout.split()
    assert (runs, frozen, enabled) == ("0", "True", "True")
