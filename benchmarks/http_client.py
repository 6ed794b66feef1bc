"""A small HTTP/1.1 client for measuring: it shares its cores with the server, so it does little."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

TIMEOUT = 300.0  # seconds for a whole exchange: longer is a hang


@dataclass
class Response:
    """A response whose body is still to be read."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def json(self) -> Any:
        """Return the whole body."""
        return json.loads(await self.reader.readexactly(int(self.headers["content-length"])))

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """Server-sent events until ``[DONE]``."""
        async for line in self.reader:
            if line == b"data: [DONE]\n":
                return
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
        raise ConnectionError("the stream ended without [DONE]")


def post_bytes(route: str, body: bytes) -> bytes:
    """Return a whole request."""
    return (
        f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


@asynccontextmanager
async def exchange(port: int, request: bytes) -> AsyncGenerator[Response, None]:
    """Send a request; leaving the block hangs up.

    Raises:
        TimeoutError: the exchange took more than ``TIMEOUT`` seconds.
        ConnectionError: the server hung up without an answer.
    """
    async with asyncio.timeout(TIMEOUT):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        try:
            writer.write(request)
            await writer.drain()
            status = await reader.readline()
            if not status:
                raise ConnectionError("no answer")
            headers = {}
            while (line := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            yield Response(int(status.split()[1]), headers, reader)
        finally:
            writer.close()


def post(port: int, route: str, body: dict[str, Any]) -> Any:
    """Return an exchange with a JSON body, as ``exchange``."""
    return exchange(port, post_bytes(route, json.dumps(body).encode()))
