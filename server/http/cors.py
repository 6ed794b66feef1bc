"""Cross-origin calls: which pages' scripts may use the server."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from detinfer.server.errors import Failure

EXPOSED_HEADERS = (
    "x-request-id",
    "x-detinfer-deterministic",
    "x-detinfer-digest",
    "retry-after",
)


class CorsMiddleware(CORSMiddleware):
    """Starlette's, without credentials (keys travel in a header), and with our error object."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer an OPTIONS request that asks before the call; no key is needed for it."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        headers = {"vary": response.headers["vary"]}
        message = f"{bytes(response.body).decode()}, expected one that --cors-origin allows"
        return Failure(
            400, message, "invalid_request_error", code="cors", headers=headers
        ).response()
