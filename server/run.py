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
from detinfer.engine.async_solver import AsyncSolver
from detinfer.engine.remote import Remote
from detinfer.engine.solver_config import SolverConfig
from detinfer.logs import log, logging_to_stderr
from detinfer.server.app import create_app
from detinfer.server.http.access_log import log as access_log
from detinfer.server.http.listener import allow_open_files
from detinfer.server.http.protocol import http_protocol
from detinfer.server.service import Kind, Service

# What a connection may take to finish sending once the engine has nothing more to say.
_LAST_BYTES_SECONDS = 5
_POLL_SECONDS = 0.05
# Longer than clients and balancers keep idle connections: the side that reuses should end them.
_KEEP_ALIVE_SECONDS = 75
# A connection is one; many systems allow 1,024 unless they are asked.
_OPEN_FILES = 65_536


def run_server(
    engine_config: EngineConfig | None,
    server_config: ServerConfig,
    listener: socket.socket,
    solver_config: SolverConfig | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM; a first signal drains, a second one stops at once.

    Args:
        engine_config: settings of the language model's engine; None serves none.
        server_config: the server's settings.
        listener: where calls come in (``detinfer.server.http.listener``).
        solver_config: the solvers' settings; None serves none.

    Returns:
        The exit status: 128 + the signal's number, or 1 if the engine died.

    Raises:
        DetinferError: the model could not be loaded.
    """
    access_log.disabled = not server_config.access_log
    allow_open_files(_OPEN_FILES)
    with asyncio.Runner(loop_factory=_event_loop_factory()) as runner:
        return runner.run(_Run(engine_config, solver_config, server_config, listener).serve())


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
        self,
        engine_config: EngineConfig | None,
        solver_config: SolverConfig | None,
        server_config: ServerConfig,
        listener: socket.socket,
    ) -> None:
        self._engine_config, self._solver_config = engine_config, solver_config
        given: dict[Kind, EngineConfig | SolverConfig | None] = {
            "language model": engine_config,
            "solvers": solver_config,
        }
        served = {kind: config for kind, config in given.items() if config is not None}
        self._config = server_config
        self._listener = listener
        self._drain = asyncio.Event()
        self._force = asyncio.Event()
        self._signal = signal.SIGTERM
        app = create_app(
            None,
            server_config,
            default_deterministic=all(one.default_deterministic for one in served.values()),
            serves=tuple(served),
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
            if await self._load():
                died = await self._until_over(http)
                await self._finish_requests()
        finally:
            await asyncio.gather(*(one.shutdown(0.0) for one in self._loaded()))
            self._http.should_exit = True
            await http
        return 1 if died else 128 + self._signal

    def _loaded(self) -> list[Remote[Any, Any]]:
        """Return what runs in processes of their own."""
        both = (self._service.engine, self._service.solver)
        return [one for one in both if one is not None]

    async def _load(self) -> bool:
        """Load all that is served; False when a signal came first."""
        url = self._url()
        log.info(f"loading the model; {url}/health answers 503 until it is ready")
        start = time.monotonic()
        loading = asyncio.gather(self._start_engine(), self._start_solver())
        await self._until(self._drain, loading)
        if not loading.done():
            self._service.draining = True
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            return False
        loading.result()
        log.info(
            f"ready on {url}  {'  '.join(self._told())}  in {time.monotonic() - start:.1f} s; "
            f"try: {_example(url, self._config, self._service)}"
        )
        engine = self._service.engine
        if engine is not None and engine.info.generation_defaults:
            log.info(not_applied(engine.info.generation_defaults))
        return True

    def _told(self) -> Iterator[str]:
        engine, solver = self._service.engine, self._service.solver
        if engine is not None:
            yield f"model {self._service.model_id(engine)}"
            yield f"fingerprint {engine.info.system_fingerprint}"
        if solver is not None:
            for name, model in solver.info.models.items():
                yield f"solver {name}"
                yield f"fingerprint {model.system_fingerprint}"

    async def _start_engine(self) -> None:
        if self._engine_config is not None:
            self._service.engine = await AsyncEngine.start(
                self._engine_config, self._config.max_queue_size, **self._options()
            )

    async def _start_solver(self) -> None:
        if self._solver_config is not None:
            self._service.solver = await AsyncSolver.start(
                self._solver_config, self._config.max_queue_size, **self._options()
            )

    def _options(self) -> dict[str, Any]:
        return {
            "generation_timeout": self._config.generation_timeout,
            "logs": partial(logging_to_stderr, self._config.log_format, self._config.log_level),
        }

    async def _until_over(self, http: asyncio.Task[None]) -> bool:
        """Wait for the end of our service; True if it is an engine's death."""
        ended = [asyncio.create_task(one.ended()) for one in self._loaded()]
        await self._until(self._drain, http, *ended)
        if self._drain.is_set() or http.done():
            for task in ended:
                task.cancel()
            self._service.draining = True
            return False
        why = next(task.result() for task in ended if task.done())
        if self._config.exit_on_engine_death:
            log.error(f"{why}; answering those who wait, then exiting with status 1")
            self._service.draining = len(ended) > 1  # the other one takes no more
            return True
        log.error(f"{why}; answering 503 until restarted")
        await self._until(self._drain, http)
        self._service.draining = True
        return False

    async def _until(self, event: asyncio.Event, *tasks: asyncio.Future[Any]) -> None:
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


def _example(url: str, config: ServerConfig, service: Service) -> str:
    """Return a request to copy into a shell."""
    key = f' -H "authorization: Bearer ${VARIABLE}"' if config.api_keys else ""
    if service.engine is None:
        return f"curl -s {url}/v1/models{key}"
    body = '{"prompt": "The capital of France is", "max_tokens": 16}'
    return f"curl -s {url}/generate{key} -H 'content-type: application/json' -d '{body}'"
