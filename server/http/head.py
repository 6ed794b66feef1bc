"""HEAD is GET without the body, on every route that has GET."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Asks the routes with GET; innermost, so that metrics and log have what was asked for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, with a ``send`` that leaves bodies out."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def headers_only(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # A copy: the HTTP parser's own must say HEAD until the end.
        asked = {**scope, "method": "GET"}
        try:
            await self.app(asked, receive, headers_only)
        finally:
            if "route" in asked:
                scope["route"] = asked["route"]
