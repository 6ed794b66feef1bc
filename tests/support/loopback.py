"""The application on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fake_engine import FakeEngine

from detinfer.config import ServerConfig
from detinfer.server.app import create_app
from detinfer.server.http.protocol import http_protocol


@contextlib.asynccontextmanager
async def serving(engine: FakeEngine, **settings: Any) -> AsyncIterator[tuple[int, Any]]:
    """The application on a real loopback socket; gives its port and its service."""
    app = create_app(engine, ServerConfig(**settings))  # type: ignore[arg-type]
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=http_protocol(app.state.service),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level=logging.ERROR,
            timeout_graceful_shutdown=2,
        )
    )
    # Signals belong to pytest.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1], app.state.service
        finally:
            server.should_exit = True
            await asyncio.wait_for(task, 10)


@contextlib.contextmanager
def served_on_a_thread(engine: FakeEngine, **settings: Any) -> Iterator[tuple[int, Any]]:
    """As ``serving``, on a loop of its own; for tests that share one server."""
    started = threading.Event()
    at: list[Any] = []

    async def serve() -> None:
        stop = asyncio.Event()
        async with serving(engine, **settings) as (port, service):
            at.extend([port, service, asyncio.get_running_loop(), stop])
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(10)
    port, service, loop, stop = at
    try:
        yield port, service
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
