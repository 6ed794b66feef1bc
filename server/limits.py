"""What one call may cost: bytes, choices and seconds."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detinfer.config import ServerConfig
from detinfer.server.errors import GenerationTimeoutError

MAX_BODY_BYTES = 4 << 20
MAX_PROMPTS = 32
MAX_CHOICES = 128  # of all prompts of a call together
MAX_LOGPROBS_OF_CALL = 1 << 19  # of all its tokens, the top ones too: half a second to write


class LimitsMiddleware:
    """Refuse bodies too long or too slow, and end calls that take too long.

    All through ``receive``: a route that waits for its client to go away (``until_disconnect``)
    learns there as well that its time is up.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on with a ``receive`` that counts."""
        if scope["type"] == "http":
            receive = _LimitedReceive(receive, _content_length(scope), self._config)
        await self.app(scope, receive, send)


class _LimitedReceive:
    def __init__(self, receive: Receive, announced: int, config: ServerConfig) -> None:
        self._receive = receive
        self._announced = announced
        self._config = config
        self._received = 0
        self._complete = False
        self._deadline = _after(config.request_timeout)

    async def __call__(self) -> Message:
        if self._announced > MAX_BODY_BYTES:
            raise _too_large(f"{self._announced} bytes")
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise self._timed_out() from None
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > MAX_BODY_BYTES:
                raise _too_large("more")
            if not message.get("more_body", False) and not self._complete:
                self._complete = True
                self._deadline = _after(self._config.generation_timeout)
        return message

    def _timed_out(self) -> Exception:
        if self._complete:
            seconds = self._config.generation_timeout
            return GenerationTimeoutError(f"the answer took more than {seconds:g} s")
        seconds = self._config.request_timeout
        return HTTPException(408, f"body: got only a part of it in {seconds:g} s")


def _after(seconds: float) -> float | None:
    return asyncio.get_running_loop().time() + seconds if seconds else None


def _content_length(scope: Scope) -> int:
    # The HTTP parser has refused lengths that are no number; a chunked body has none.
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0


def _too_large(got: str) -> HTTPException:
    return HTTPException(413, f"body: got {got}, expected at most {MAX_BODY_BYTES} bytes")
