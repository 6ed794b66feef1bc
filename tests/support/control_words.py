"""Control words as a careless process leaves them: set by libm and PyTorch, not by our code."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ARM = {"upward": 0x400000, "downward": 0x800000, "toward zero": 0xC00000}
_X86 = {"upward": 0x800, "downward": 0x400, "toward zero": 0xC00}
FLUSHED = "subnormals flushed"
KINDS = (*_X86, FLUSHED)


def _libm() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("m"))


@contextmanager
def foreign_word(kind: str) -> Iterator[None]:
    """Round or flush otherwise in the calling thread, and in threads born meanwhile."""
    if kind == FLUSHED:
        assert torch.set_flush_denormal(True), "this CPU cannot flush subnormals"
        try:
            yield
        finally:
            torch.set_flush_denormal(False)
        return
    modes = _X86 if platform.machine().lower() in ("x86_64", "amd64") else _ARM
    libm = _libm()
    before = libm.fegetround()
    assert libm.fesetround(modes[kind]) == 0, f"this CPU cannot round {kind}"
    try:
        yield
    finally:
        libm.fesetround(before)
