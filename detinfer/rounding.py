"""What the calling thread computes, and PyTorch for it, is rounded as the contract says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from detinfer.kernels.cpu.rounding import control_word, enter, leave


@contextlib.contextmanager
def contract_rounding() -> Iterator[None]:
    """Compute under a control word of our own, and give the caller's back.

    Our kernels see to their own workers. PyTorch's may have been born under any word, and cannot be
    told: inside, PyTorch computes in the calling thread alone. Its part of a deterministic step is
    a few additions and copies.
    """
    before, threads = control_word(), torch.get_num_threads()
    try:
        enter()
        torch.set_num_threads(1)
        yield
    finally:
        try:
            leave(before)
        finally:  # Ctrl-C may come in between
            torch.set_num_threads(threads)
