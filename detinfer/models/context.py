"""The step in progress, as patched leaves and the attention function see it.

Handed over beside the model's own arguments because some architectures drop keyword arguments they
do not know. One step runs at a time in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detinfer.backends.native import NativeCache
    from detinfer.backends.native_batch import NativeBatch
    from detinfer.ops import BatchTensors, KVCache


@dataclass(frozen=True)
class ForwardContext:
    """What one forward pass runs on.

    Attributes:
        batch: rows, positions and pages of the step; None while a model is being probed.
        cache: the paged keys and values; None while a model is being probed.
        deterministic: whether leaves run the contract's kernels or PyTorch's stock ops.
    """

    batch: BatchTensors | NativeBatch | None
    cache: KVCache | NativeCache | None
    deterministic: bool = True


class _Local(threading.local):
    context: ForwardContext | None = None


_local = _Local()


def current() -> ForwardContext:
    """Return the context of the step in progress in this thread.

    Raises:
        RuntimeError: a patched model was called outside ``forward_context``.
    """
    context = _local.context
    if context is None:
        raise RuntimeError("a patched model was called outside forward_context(...)")
    return context


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Make ``context`` the current one and restore the previous one on leaving."""
    previous = _local.context
    _local.context = context
    try:
        yield
    finally:
        _local.context = previous
