"""The tiny models and the fake tokenizer come from the tests beside; one thread unless asked."""

import sys
from pathlib import Path

import numba
import pytest
import torch

for folder in ("engine", "models"):
    sys.path.append(str(Path(__file__).parents[1] / folder))


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[0])
    torch.set_num_threads(before[1])
