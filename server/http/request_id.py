"""``x-request-id`` in and out."""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ACCEPTED = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


def new_request_id() -> str:
    """Return an id for a request that brought none."""
    return uuid.uuid4().hex


class RequestIdMiddleware:
    """Echo a well-formed ``x-request-id``, make one otherwise; outermost of our middleware.

    The request's state has it as ``request_id``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on with a ``send`` that adds the id."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _incoming(scope) or new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        header = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
            await send(message)

        await self.app(scope, receive, send_with_id)


def _incoming(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if _ACCEPTED.fullmatch(value) else None
    return None
