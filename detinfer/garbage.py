"""Imports that the garbage collector does not look through."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector away from what is made inside: meanwhile, and ever after.

    torch and transformers make a million objects when they are imported, all of which stay.
    Looking through them again and again took a third of a start.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
