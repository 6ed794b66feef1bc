"""What one HTTP request did, as its operators see it: in the metrics and in the access log."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detinfer.server.errors import CLIENT_CLOSED_REQUEST
from detinfer.server.http.access_log import log_request
from detinfer.server.http.exchange import Exchange, current
from detinfer.server.metrics.counts import Metrics


class ObservationMiddleware:
    """Count and log each request when it has ended, however it ended."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on with a ``send`` that looks."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(self._metrics)
        token = current.set(exchange)
        started = time.perf_counter()
        status, complete, failed = CLIENT_CLOSED_REQUEST, False, False

        async def observed(message: Message) -> None:
            nonlocal status, complete
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)

        try:
            await self.app(scope, receive, observed)
        except Exception:
            failed = True
            raise
        finally:
            current.reset(token)
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.http_requests[scope["method"], route, str(status)] += 1
            log_request(
                request_id=scope["state"]["request_id"],
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=time.perf_counter() - started,
                client_disconnected=status == CLIENT_CLOSED_REQUEST or not (complete or failed),
                generations=exchange.generations,
            )
