"""What one call may cost, and all together: bytes, choices and seconds."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detinfer.config import ServerConfig
from detinfer.errors import QueueFullError

MAX_BODY_BYTES = 4 << 20
MAX_OPEN_BYTES = 256 << 20  # of all bodies whose calls have not ended
MAX_PROMPTS = 32
MAX_CHOICES = 128  # of all prompts of a call together
MAX_LOGPROBS_OF_CALL = 1 << 19  # of all its tokens, the top ones too: half a second to write

MAX_RECEIPT_TOKENS_OF_CALL = 1 << 19  # of all its prompts and answers: 20 MB to seal and send


class LimitsMiddleware:
    """Refuse bodies that are too long, too slow or, with those of other open calls, too much."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app = app
        self._seconds = config.request_timeout
        self._open_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on with a ``receive`` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced, received, complete = _content_length(scope), 0, False
        deadline = _after(self._seconds)

        async def limited() -> Message:
            nonlocal received, complete, deadline
            if announced > MAX_BODY_BYTES:
                raise _too_large(f"{announced} bytes")
            to_come = max(announced - received, 0)
            if not complete and self._open_bytes + to_come > MAX_OPEN_BYTES:
                raise QueueFullError(
                    f"body: open requests hold {self._open_bytes} bytes of {MAX_OPEN_BYTES}, "
                    "too many for this one"
                )
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                seconds = self._seconds
                raise HTTPException(408, f"body: got only a part of it in {seconds:g} s") from None
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                received += size
                self._open_bytes += size
                if received > MAX_BODY_BYTES:
                    raise _too_large("more")
                if not message.get("more_body", False):
                    complete, deadline = True, None
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            self._open_bytes -= received


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
