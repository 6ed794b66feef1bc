"""Server-sent events, written by hand: one send for everything that is ready."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from detinfer.server.errors import ClientDisconnectedError, Failure, failure_of
from detinfer.server.http.disconnect import until_disconnect
from detinfer.server.wire import to_json_bytes

DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    """One event; JSON escapes line ends, so a value never breaks its frame."""
    return b"data: " + to_json_bytes(value) + b"\n\n"


class EventStream(Response):
    """Send chunks of events as they come; an error before the first one is a plain HTTP error.

    A later error becomes an event of its own. When the client goes away ``chunks`` is closed at
    once, which aborts its requests.
    """

    media_type = "text/event-stream"
    end = DONE

    @staticmethod
    def failure_payload(failure: Failure) -> dict[str, Any]:
        """Return what the event of a failure says."""
        return failure.payload()

    def __init__(self, chunks: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        # Not Response.__init__: it would promise a body of length 0.
        self.chunks = chunks
        self.status_code = 200
        self.background = None
        self._started = False
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; ASGI entry."""
        try:
            await until_disconnect(receive, self._send_chunks(send))
        except ClientDisconnectedError:
            return
        except Exception as error:
            if not self._started:
                raise
            await _send_body(send, event(self.failure_payload(failure_of(error))))
        await _send_body(send, self.end)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_chunks(self, send: Send) -> None:
        async with aclosing(self.chunks) as chunks:
            async for chunk in chunks:
                if not self._started:
                    await self._start(send)
                await _send_body(send, chunk)

    async def _start(self, send: Send) -> None:
        self._started = True
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )


async def _send_body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
