"""Fakes come from the tests of the engine and of the server; one thread, as rows are tiny."""

import sys
from pathlib import Path

import numba
import pytest

for folder in ("engine", "server"):
    sys.path.append(str(Path(__file__).parents[1] / folder))


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)
