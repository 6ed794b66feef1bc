"""The application on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fake_engine import FakeEngine

from detinfer.config import ServerConfig
from detinfer.server.app import create_app


@contextlib.asynccontextmanager
async def serving(engine: FakeEngine, **settings: Any) -> AsyncIterator[tuple[int, Any]]:
    """The application on a real loopback socket; gives its port and its service."""
    app = create_app(engine, ServerConfig(**settings))  # type: ignore[arg-type]
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=2)
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
