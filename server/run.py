"""Run the HTTP server: answer while the model loads, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvicorn

from detinfer.api_keys import VARIABLE
from detinfer.checkpoint.generation_defaults import not_applied
from detinfer.config import EngineConfig, ServerConfig
from detinfer.engine.async_engine import AsyncEngine
from detinfer.logs import log, logging_to_stderr
from detinfer.server.app import create_app
from detinfer.server.http.access_log import log as access_log
from detinfer.server.http.listener import allow_open_files
from detinfer.server.http.protocol import http_protocol
from detinfer.server.service import Service

# What a connection may take to finish sending once the engine has nothing more to say.
_LAST_BYTES_SECONDS = 5
_POLL_SECONDS = 0.05
# Longer than clients and balancers keep idle connections: the side that reuses should end them.
_KEEP_ALIVE_SECONDS = 75
# A connection is one; many systems allow 1,024 unless they are asked.
_OPEN_FILES = 65_536


def run_server(
    engine_config: EngineConfig, server_config: ServerConfig, listener: socket.socket
) -> int:
    """Serve until SIGINT or SIGTERM; a first signal drains, a second one stops at once.

    Args:
        engine_config: the engine's settings.
        server_config: the server's settings.
        listener: where calls come in (``detinfer.server.http.listener``).

    Returns:
        The exit status: 128 + the signal's number, or 1 if the engine died.

    Raises:
        DetinferError: the model could not be loaded.
    """
    access_log.disabled = not server_config.access_log
    allow_open_files(_OPEN_FILES)
    with asyncio.Runner(loop_factory=_event_loop_factory()) as runner:
        return runner.run(_Run(engine_config, server_config, listener).serve())


def _event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the faster loop where there is one: it shares its cores with the engine."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: we drain first, while it still answers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Run:
    """One server process from first byte to last."""

    def __init__(
        self, engine_config: EngineConfig, server_config: ServerConfig, listener: socket.socket
    ) -> None:
        self._engine_config = engine_config
        self._config = server_config
        self._listener = listener
        self._drain = asyncio.Event()
        self._force = asyncio.Event()
        self._signal = signal.SIGTERM
        app = create_app(
            None, server_config, default_deterministic=engine_config.default_deterministic
        )
        self._service: Service = app.state.service
        self._http = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                ws="none",
                lifespan="off",
                server_header=False,
                http=http_protocol(self._service),
                # A 400 for every byte of garbage is in the access log, not in this one.
                log_level=logging.ERROR,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
            )
        )

    async def serve(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        died = False
        try:
            engine = await self._load()
            if engine is not None:
                try:
                    died = await self._until_over(engine, http)
                    await self._finish_requests()
                finally:
                    await engine.shutdown(0.0)
        finally:
            self._http.should_exit = True
            await http
        return 1 if died else 128 + self._signal

    async def _load(self) -> AsyncEngine | None:
        """Return the engine, or None when a signal came first."""
        url = self._url()
        log.info(f"loading the model; {url}/health answers 503 until it is ready")
        start = time.monotonic()
        loading = asyncio.create_task(
            AsyncEngine.start(
                self._engine_config,
                self._config.max_queue_size,
                generation_timeout=self._config.generation_timeout,
                logs=partial(logging_to_stderr, self._config.log_format, self._config.log_level),
            )
        )
        await self._until(self._drain, loading)
        if not loading.done():
            self._service.draining = True
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            return None
        engine = loading.result()
        self._service.engine = engine
        log.info(
            f"ready on {url}  model {self._service.model_id(engine)}  "
            f"fingerprint {engine.info.system_fingerprint}  in {time.monotonic() - start:.1f} s; "
            f"try: {_example(url, self._config)}"
        )
        if engine.info.generation_defaults:
            log.info(not_applied(engine.info.generation_defaults))
        return engine

    async def _until_over(self, engine: AsyncEngine, http: asyncio.Task[None]) -> bool:
        """Wait for the end of our service; True if it is the engine's death."""
        ended = asyncio.create_task(engine.ended())
        await self._until(self._drain, http, ended)
        if self._drain.is_set() or http.done():
            ended.cancel()
            self._service.draining = True
            return False
        if self._config.exit_on_engine_death:
            log.error(f"{ended.result()}; answering those who wait, then exiting with status 1")
            return True
        log.error(f"{ended.result()}; answering 503 until restarted")
        await self._until(self._drain, http)
        self._service.draining = True
        return False

    async def _until(self, event: asyncio.Event, *tasks: asyncio.Task[Any]) -> None:
        """Wait for ``event`` or the end of a task, whichever comes first."""
        waiting = asyncio.create_task(event.wait())
        await asyncio.wait((waiting, *tasks), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def _finish_requests(self) -> None:
        """Let those end that are being answered, for a bounded time."""
        deadline = time.monotonic() + self._config.shutdown_timeout
        while self._service.active and not self._force.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._drain.is_set():
            self._force.set()
            return
        self._signal = number
        self._drain.set()
        log.info("shutting down: running requests may finish; once more to stop now")

    def _url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        host = self._config.host if self._config.host not in ("", "::", "0.0.0.0") else host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _example(url: str, config: ServerConfig) -> str:
    """Return a request to copy into a shell."""
    key = f' -H "authorization: Bearer ${VARIABLE}"' if config.api_keys else ""
    body = '{"prompt": "The capital of France is", "max_tokens": 16}'
    return f"curl -s {url}/generate{key} -H 'content-type: application/json' -d '{body}'"
