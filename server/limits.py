"""What one call may cost before the engine sees it."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 4 << 20
MAX_PROMPTS = 32


class BodyLimitMiddleware:
    """Refuse bodies over ``MAX_BODY_BYTES``, whether they announce their length or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on with a ``receive`` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = _content_length(scope)
        received = 0

        async def limited() -> Message:
            nonlocal received
            if announced > MAX_BODY_BYTES:
                raise _too_large(f"{announced} bytes")
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > MAX_BODY_BYTES:
                    raise _too_large("more")
            return message

        await self.app(scope, limited, send)


def _content_length(scope: Scope) -> int:
    # The HTTP parser has refused lengths that are no number; a chunked body has none.
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0


def _too_large(got: str) -> HTTPException:
    return HTTPException(413, f"body: got {got}, expected at most {MAX_BODY_BYTES} bytes")
