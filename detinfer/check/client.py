"""The few HTTP exchanges a check needs, on the standard library alone."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from typing import Any

from detinfer.errors import ConfigError, DetinferError, RequestError

TIMEOUT = 300.0  # seconds without a byte from the server
_ATTEMPTS = 60  # for a full queue; a Retry-After counts for at most _LONGEST_WAIT
_LONGEST_WAIT = 5.0
_LARGEST_BODY = 64 << 20


class Client:
    """A detinfer server, one connection a request; may be used by many threads at once.

    Args:
        url: ``http://HOST[:PORT]``, with a path in front of the routes if there is one.
        api_key: sent with every request.
        timeout: seconds without a byte from the server.

    Raises:
        ConfigError: if either cannot be used.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = TIMEOUT) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._timeout = timeout
        try:
            parts = urllib.parse.urlsplit(self.url)
            self._host, self._port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"--url: got {url!r} ({error})") from None
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.username:
            raise ConfigError(f"--url: got {url!r}, expected http://HOST:PORT")
        self._secure = parts.scheme == "https"
        self._path = parts.path
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            if not api_key.isascii() or not api_key.isprintable():
                raise ConfigError("DETINFER_API_KEY: expected printable ASCII characters")
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, route: str) -> Any:
        """Return the JSON value at a route.

        Raises:
            DetinferError: unreachable, refused, or not JSON.
        """
        return self._exchange("GET", route, None)

    def post(self, route: str, body: dict[str, Any]) -> Any:
        """Return the answer to a JSON body; a full queue is asked again for a while.

        Raises:
            RequestError: the server does not serve such a request.
            DetinferError: as ``get``.
        """
        return self._exchange("POST", route, body)

    def raw(
        self, method: str, route: str, body: dict[str, Any] | None
    ) -> tuple[int, bytes, str | None]:
        """Return status, content and the server's name, whatever they are.

        Raises:
            OSError, http.client.HTTPException: no answer came.
        """
        connection = self._connect()
        try:
            response = self._send(connection, method, route, body)
            return response.status, response.read(_LARGEST_BODY), response.headers.get("Server")
        finally:
            connection.close()

    def post_and_leave(self, route: str, body: dict[str, Any], events: int) -> None:
        """Read some events of a streamed answer, then hangs up; how it ends is of no interest."""
        connection = self._connect()
        try:
            response = self._send(connection, "POST", route, {**body, "stream": True})
            for _ in range(2 * events):  # an event and the blank line after it
                if not response.readline(1 << 20):
                    break
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()

    def _exchange(self, method: str, route: str, body: dict[str, Any] | None) -> Any:
        for _ in range(_ATTEMPTS):
            connection = self._connect()
            try:
                response = self._send(connection, method, route, body)
                content = response.read(_LARGEST_BODY)
            except (OSError, http.client.HTTPException) as error:
                raise self.unreachable(error) from None
            finally:
                connection.close()
            if response.status != 429:
                return self._judge(route, response.status, content)
            time.sleep(_wait(response.headers.get("Retry-After")))
        raise DetinferError(f"{self.url}: its queue stayed full")

    def unreachable(self, error: Exception) -> DetinferError:
        """Return what to raise where no answer came."""
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return DetinferError(f"{self.url}: cannot be reached ({reason})")

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        assert self._host is not None
        return kind(self._host, self._port, timeout=self._timeout)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        route: str,
        body: dict[str, Any] | None,
    ) -> http.client.HTTPResponse:
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, self._path + route, content, self._headers)
        return connection.getresponse()

    def _judge(self, route: str, status: int, content: bytes) -> Any:
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if status == 200 and value is not None:
            return value
        error = value.get("error") if isinstance(value, dict) else None
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            raise DetinferError(
                f"{self.url}: not a detinfer server ({route} answered {status}, not our JSON)"
            )
        message = f"{self.url}: {error['message']}"
        if status == 401:
            raise ConfigError(f"{message}; set DETINFER_API_KEY")
        if status in (400, 413):
            raise RequestError(message, error.get("param"), error.get("code"))
        raise DetinferError(f"{message} (status {status})")


def _wait(retry_after: str | None) -> float:
    try:
        seconds = float(retry_after or 1)
    except ValueError:
        seconds = 1.0
    return min(max(seconds, 0.1), _LONGEST_WAIT)
