"""uvicorn's HTTP/1.1 parser with bounds of its own, and our error object for what is no HTTP."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from detinfer.server.errors import Failure
from detinfer.server.http.access_log import log_request
from detinfer.server.http.request_id import new_request_id
from detinfer.server.http.slow_reader import SlowReaderWatch
from detinfer.server.service import Service

MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 100
# What a client may go on to send after its answer: enough to let it read a 413 in peace.
MAX_UNREAD_BYTES = 8 << 20

_MALFORMED = Failure(
    400, "the request is not valid HTTP/1.1", "invalid_request_error", code="invalid_http"
)
_HEAD_TOO_LARGE = Failure(
    431,
    f"headers: got too many, expected at most {MAX_HEADERS} in {MAX_HEAD_BYTES} bytes",
    "invalid_request_error",
    code="headers_too_large",
)

# The parser takes what follows an upgrade for another protocol's: the body would be lost.
_UPGRADE = Failure(
    400,
    "Upgrade: got it on a request with a body, expected plain HTTP/1.1 (Java's HttpClient: "
    "version(HTTP_1_1))",
    "invalid_request_error",
    code="upgrade_not_supported",
)
_BODY_HEADERS = (b"content-length", b"transfer-encoding")


def http_protocol(service: Service) -> type[HttpToolsProtocol]:
    """Return the protocol class for ``uvicorn.Config(http=…)`` of one server."""

    class Protocol(_BoundedProtocol):
        _service = service

    return Protocol


class _BoundedProtocol(HttpToolsProtocol):
    """Ends what is malformed, too large or too slow before a route could.

    A timer runs from the first byte that is not part of a whole request until the request is
    whole; a body that comes too slowly is the routes' to refuse, while they wait for it. Another
    runs while the client leaves an answer unread.
    """

    _service: Service
    _timer: asyncio.TimerHandle | None = None
    _reader: SlowReaderWatch | None = None
    _reading: Literal["nothing", "head", "body"] = "nothing"
    _head_bytes = 0
    _only_head = False  # whether the bytes being parsed belong to one head and nothing before it
    _unread_bytes = 0
    _refusal: Failure | None = None

    # Called by the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        seconds = self._service.config.request_timeout
        self._reader = SlowReaderWatch(self.loop, transport, seconds)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._start_timer()
        self._only_head = self._reading != "body"
        super().data_received(data)
        if self._reading == "head" and self._only_head:
            # The parser tells of a header when it is whole; until then only we can count.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_HEAD_TOO_LARGE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._reader is not None:
            self._reader.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader is not None:
            self._reader.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.stop()

    # Called by the parser; what they raise becomes send_400_response

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start_timer()
        self._reading = "head"
        self._head_bytes = self._unread_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refusal = _HEAD_TOO_LARGE
            raise ValueError

    def on_headers_complete(self) -> None:
        self._reading = "body"
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD_BYTES:
            self._refusal = _HEAD_TOO_LARGE
            raise ValueError
        if self.parser.should_upgrade() and any(name in _BODY_HEADERS for name, _ in self.headers):
            self._refusal = _UPGRADE
            raise ValueError
        super().on_headers_complete()
        if self.parser.get_http_version() == "1.0":
            # Neither chunks nor 100 Continue are known there.
            self.cycle.waiting_for_100_continue = False
            self.cycle.send = _SendUntilClose(self.cycle)  # type: ignore[method-assign]

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._reading, self._only_head = "nothing", False
        super().on_message_complete()

    # Answers

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's way to refuse what its parser could not read."""
        self._refuse(self._refusal or _MALFORMED)

    def _refuse(self, failure: Failure) -> None:
        if self.transport.is_closing():
            return
        if self._answering() and not self._waiting_for_body():
            # Bytes written now would land in the middle of an answer; it ends with its connection.
            self.transport.close()
            return
        request_id = new_request_id()
        response = failure.response()
        lines = [f"HTTP/1.1 {failure.status} {HTTPStatus(failure.status).phrase}".encode()]
        lines += [name + b": " + value for name, value in response.raw_headers]
        lines += [b"x-request-id: " + request_id.encode(), b"connection: close", b"", b""]
        self.transport.write(b"\r\n".join(lines) + bytes(response.body))
        self.transport.close()
        self._service.metrics.http_requests["none", "none", str(failure.status)] += 1
        log_request(
            request_id=request_id, method=None, path=None, status=failure.status, seconds=0.0
        )

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _waiting_for_body(self) -> bool:
        cycle = self.cycle
        return cycle.more_body and not cycle.response_started and not self.pipeline

    # The timers

    def _start_timer(self) -> None:
        seconds = self._service.config.request_timeout
        if self._timer is None and seconds:
            self._timer = self.loop.call_later(seconds, self._timed_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timed_out(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._answering():
            self._start_timer()
        elif self._reading == "head":
            seconds = self._service.config.request_timeout
            message = f"headers: got only a part of them in {seconds:g} s"
            self._refuse(Failure(408, message, "timeout_error", code="request_timeout"))
        else:
            self.transport.close()


class _SendUntilClose:
    """``send`` for HTTP/1.0: an answer without a length ends with its connection.

    uvicorn would send it in chunks; it never keeps such a connection.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._has_length = False

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            names = [name.lower() for name, _ in message.get("headers", [])]
            self._has_length = b"content-length" in names
            self._cycle.chunked_encoding = False if not self._has_length else None
        elif not self._has_length:
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)
