"""A client that takes nothing of its answer is let go; one that reads slowly is not."""

from __future__ import annotations

import array
import asyncio
import contextlib
import sys

# A clock that jumps, or a loop that was busy, makes for one look without progress, not for all.
_LOOKS = 4


class SlowReaderWatch:
    """Aborts a transport after ``seconds`` in which its peer has taken nothing.

    What counts is what the peer's kernel has acknowledged. Room in our own socket's buffer tells
    little: it holds megabytes, and is offered to us a third at a time.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, seconds: float
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Bytes wait to be sent."""
        self.stop()
        if self._seconds:
            self._look_again(_unacknowledged(self._transport), 0)

    def stop(self) -> None:
        """None do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_again(self, left: int, idle_looks: int) -> None:
        self._timer = self._loop.call_later(self._seconds / _LOOKS, self._look, left, idle_looks)

    def _look(self, left: int, idle_looks: int) -> None:
        now = _unacknowledged(self._transport)
        if now < left:
            self._look_again(now, 0)
        elif idle_looks + 1 < _LOOKS:
            self._look_again(left, idle_looks + 1)
        else:
            self._transport.abort()  # close() would wait for the reader


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes the peer has not taken: ours, and on Linux those in the socket's buffer."""
    in_kernel = array.array("i", [0])
    if sys.platform == "linux":
        from fcntl import ioctl
        from termios import TIOCOUTQ

        # The socket may just have been closed.
        with contextlib.suppress(OSError, ValueError):
            ioctl(transport.get_extra_info("socket").fileno(), TIOCOUTQ, in_kernel)
    return transport.get_write_buffer_size() + in_kernel[0]
