"""Kernels being compiled, which takes a minute once: said on stderr, lest a start seem to hang."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from numba.core import event

from detinfer.kernels.cpu.cache import KernelCache

_WHAT = "compiling kernels for this CPU (once)"
_TICK = 0.5  # seconds between two looks at the clock


@contextlib.contextmanager
def compile_progress() -> Iterator[None]:
    """Say what is compiled inside the block, if anything is: a running clock on a terminal.

    Elsewhere one line when it begins and one when it is over.
    """
    listener = _Listener()
    try:
        with event.install_listener("numba:compile", listener):
            yield
    finally:
        listener.finish()


class _Listener(event.Listener):  # type: ignore[misc]
    """Counts kernels; the one shown is the one that asked for the others."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._name = ""
        self._count = 0
        self._start = 0.0  # of the one shown
        self._seconds = 0.0  # of all before it
        self._done = threading.Event()
        self._clock: threading.Thread | None = None

    def on_start(self, event: Any) -> None:
        """Hear that a compilation begins."""
        dispatcher = event.data["dispatcher"]
        if not isinstance(dispatcher._cache, KernelCache):  # somebody else's function
            return
        function = dispatcher.py_func
        if not self._open:
            self._name = f"{function.__module__.rpartition('.')[2]} {function.__name__}"
            self._start = time.monotonic()
        self._open.append(function.__name__)
        self._count += 1
        if self._count == 1:
            self._begin()

    def on_end(self, event: Any) -> None:
        """Hear that it is over, or has failed."""
        if isinstance(event.data["dispatcher"]._cache, KernelCache):
            self._open.pop()
            if not self._open:
                self._seconds += time.monotonic() - self._start

    def _begin(self) -> None:
        if sys.stderr.isatty():
            self._clock = threading.Thread(target=self._tick, daemon=True)
            self._clock.start()
        else:
            _say(_WHAT)

    def _tick(self) -> None:
        while not self._done.wait(_TICK):
            seconds = self._seconds + (time.monotonic() - self._start if self._open else 0)
            _say(f"{_WHAT}: {self._name} … {seconds:.0f} s", start="\r", end="\x1b[K")

    def finish(self) -> None:
        """Say how long all of it took."""
        if not self._count:
            return
        self._done.set()
        if self._clock is not None:
            self._clock.join()
        kernels = f"{self._count} kernel{'s' if self._count > 1 else ''}"
        start, end = ("", "\n") if self._clock is None else ("\r", "\x1b[K\n")
        _say(f"compiled {kernels} in {self._seconds:.0f} s", start=start, end=end)


def _say(line: str, start: str = "", end: str = "\n") -> None:
    print(f"{start}detinfer: {line}", end=end, file=sys.stderr, flush=True)
