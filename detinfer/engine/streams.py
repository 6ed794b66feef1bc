"""The open requests of an engine: who waits for what, how many there may be, and how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from detinfer.engine.outputs import Wire
from detinfer.errors import DetinferError, GenerationTimeoutError, QueueFullError, RequestError

# Prompt tokens of all open requests together: about 40 bytes each in the engine's process.
MAX_OPEN_TOKENS = 1 << 24


@dataclass(slots=True, eq=False)
class Stream:
    """What one open request waits for."""

    prompt_tokens: int
    items: asyncio.Queue[Wire | DetinferError] = field(default_factory=asyncio.Queue)
    timer: asyncio.TimerHandle | None = None


class Streams:
    """One stream for each open request; touched from the event loop only.

    Args:
        capacity: most open requests.
        timeout: seconds a request may take from its first step on; 0 is for ever. Waiting is
            bounded by the capacity, and by the patience of whoever waits.
        abort: ends a request whose time is up.

    Attributes:
        idle: set while no request is open.
    """

    def __init__(self, capacity: int, timeout: float, abort: Callable[[str], None]) -> None:
        self.capacity = capacity
        self.idle = asyncio.Event()
        self.idle.set()
        self._timeout = timeout
        self._abort = abort
        self._open: dict[str, Stream] = {}
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, request_id: str, prompt_tokens: int) -> Stream:
        """Return a stream for one more request.

        Raises:
            RequestError: if its id is in use.
            QueueFullError: if too many requests, or too long ones, are open.
        """
        if request_id in self._open:
            raise RequestError(f"request_id: {request_id!r} is in use", "request_id")
        if len(self._open) >= self.capacity:
            raise QueueFullError(f"{len(self._open)} requests are open, at most {self.capacity}")
        if self._tokens + prompt_tokens > MAX_OPEN_TOKENS:
            raise QueueFullError(
                f"{self._tokens} prompt tokens are open, {prompt_tokens} more make more than "
                f"{MAX_OPEN_TOKENS}"
            )
        stream = self._open[request_id] = Stream(prompt_tokens)
        self._tokens += prompt_tokens
        self.idle.clear()
        return stream

    def start(self, request_id: str) -> None:
        """Begin a request's time: it has run for the first time."""
        stream = self._open.get(request_id)
        if stream is not None and self._timeout:
            loop = asyncio.get_running_loop()
            stream.timer = loop.call_later(self._timeout, self._time_out, request_id)

    def put(self, request_id: str, item: Wire | DetinferError, last: bool) -> None:
        """Hand on what has come; a request that has left meanwhile is ignored."""
        stream = self._open.get(request_id)
        if stream is not None:
            stream.items.put_nowait(item)
            if last:
                self.close(request_id, stream)

    def put_all(self, error: str, kind: type[DetinferError]) -> None:
        """End every stream with an error."""
        for request_id in list(self._open):
            self.put(request_id, kind(error), last=True)

    def close(self, request_id: str, stream: Stream) -> bool:
        """Forget a stream; False if it has been forgotten before."""
        if self._open.get(request_id) is not stream:
            return False
        del self._open[request_id]
        self._tokens -= stream.prompt_tokens
        if stream.timer is not None:
            stream.timer.cancel()
        if not self._open:
            self.idle.set()
        return True

    def _time_out(self, request_id: str) -> None:
        error = GenerationTimeoutError(f"the answer took more than {self._timeout:g} s")
        self.put(request_id, error, last=True)
        self._abort(request_id)
