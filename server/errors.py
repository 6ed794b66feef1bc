"""Every failure as the one error object: ``{"error": {"message", "type", "param", "code"}}``.

A dialect whose clients read another one may say so (``speak``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detinfer.errors import (
    DetinferError,
    EngineDeadError,
    GenerationTimeoutError,
    QueueFullError,
    RequestError,
)
from detinfer.server.wire import json_response

log = logging.getLogger("detinfer.server")

CLIENT_CLOSED_REQUEST = 499  # nobody reads it; nginx's number


class ErrorDetail(BaseModel):
    """What went wrong, in one line, and where."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class UnavailableError(EngineDeadError):
    """The server is loading, draining or without an engine; ``code`` says which."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class GenerationError(DetinferError):
    """The engine gave up on one request, for example because its logits became NaN."""


class ModelNotFoundError(RequestError):
    """A request named a model that this server does not have."""

    def __init__(self, model: str, *served: str) -> None:
        message = f"model: got {model[:100]!r}, expected {' or '.join(map(repr, served))}"
        super().__init__(message, "model", "model_not_found")


class NotServedError(DetinferError):
    """A route of a kind of model that this server was started without."""


class ClientDisconnectedError(Exception):
    """The client went away before its answer was complete."""


@dataclass(frozen=True)
class Failure:
    """An HTTP status with its error object's fields."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def payload(self) -> dict[str, Any]:
        """Return the error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """Return the whole HTTP answer."""
        return json_response(self.payload(), self.status, self.headers)


def failure_of(error: Exception) -> Failure:
    """Make the answer for ``error``; an unexpected one is logged and its text kept to us."""
    message = str(error)
    match error:
        case ModelNotFoundError():
            return Failure(404, message, "not_found_error", error.param, error.code)
        case NotServedError():
            return Failure(404, message, "not_found_error", code="not_served")
        case RequestError():
            return Failure(400, message, "invalid_request_error", error.param, error.code)
        case QueueFullError():
            return Failure(
                429,
                message,
                "rate_limit_error",
                code="queue_full",
                headers={"retry-after": str(error.retry_after)},
            )
        case UnavailableError():
            return Failure(503, message, "unavailable_error", code=error.code)
        case EngineDeadError():
            return Failure(503, message, "unavailable_error", code="engine_dead")
        case GenerationError():
            return Failure(500, message, "server_error", code="generation_failed")
        case GenerationTimeoutError():
            return Failure(504, message, "timeout_error", code="timeout")
        case HTTPException():
            return _http_failure(error)
    log.error("unexpected error while answering a request", exc_info=error)
    return Failure(500, "internal error; the server's log has the details", "server_error")


def install_error_handlers(app: FastAPI) -> None:
    """Answer every deliberate error, and the router's own 404 and 405, with the error object."""

    async def on_error(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.detail in ("Not Found", "Method Not Allowed"):
            return _routing_failure(request, error).response()
        return _in_dialect(request.scope, failure_of(error))

    async def on_disconnect(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(DetinferError, on_error)
    app.add_exception_handler(HTTPException, on_error)
    app.add_exception_handler(ClientDisconnectedError, on_disconnect)
    app.add_exception_handler(ClientDisconnect, on_disconnect)  # in the middle of its body


class CatchAllMiddleware:
    """The net under everything: an unforeseen error is a clean 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; an answer that has begun can only be cut off."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            failure = failure_of(error)
            if started:
                raise
            await _in_dialect(scope, failure)(scope, receive, send)


def speak(request: Request, payload: Callable[[Failure], dict[str, Any]]) -> None:
    """Have the failures of this request from now on in the shape of its dialect."""
    request.state.failure_payload = payload


def _in_dialect(scope: Scope, failure: Failure) -> Response:
    payload = scope.get("state", {}).get("failure_payload", Failure.payload)
    return json_response(payload(failure), failure.status, failure.headers)


_KINDS: dict[int, tuple[str, str | None]] = {
    404: ("not_found_error", None),
    408: ("timeout_error", "request_timeout"),
    413: ("invalid_request_error", "body_too_large"),
}


def _http_failure(error: HTTPException) -> Failure:
    kind, code = _KINDS.get(error.status_code, ("invalid_request_error", None))
    headers = dict(error.headers or {})
    return Failure(error.status_code, str(error.detail), kind, code=code, headers=headers)


def _routing_failure(request: Request, error: HTTPException) -> Failure:
    """Return the router's bare "Not Found" with the method and path that were asked for."""
    path = request.url.path[:200]
    headers = dict(error.headers or {})
    if error.status_code == 404:
        message = f"no such route: {request.method} {path}"
        return Failure(404, message, "not_found_error", code="route_not_found", headers=headers)
    allowed = headers.get("allow", headers.get("Allow", "another method"))
    message = f"method: got {request.method} for {path}, expected {allowed}"
    return Failure(
        405, message, "invalid_request_error", code="method_not_allowed", headers=headers
    )
