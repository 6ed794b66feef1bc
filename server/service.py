"""What the routes share: the engine, once there is one, and the state the server is in."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from starlette.requests import Request

from detinfer.config import ServerConfig
from detinfer.engine.async_engine import AsyncEngine
from detinfer.errors import QueueFullError
from detinfer.server.errors import UnavailableError
from detinfer.server.metrics.counts import Metrics

State = Literal["loading", "ready", "draining", "dead"]

_MESSAGES = {
    "loading": "the model is still loading",
    "draining": "the server is shutting down and takes no new requests",
    "dead": "the engine process has ended; restart the server",
}


class Service:
    """One server's engine and state; touched from the event loop only.

    Attributes:
        draining: set once, at shutdown; new requests are then refused.
        active: calls that are being answered by the engine.
        metrics: what has been served so far.
    """

    def __init__(
        self, engine: AsyncEngine | None, config: ServerConfig, default_deterministic: bool
    ) -> None:
        self.metrics = Metrics()
        self.engine = engine
        self.config = config
        self.default_deterministic = default_deterministic
        self.draining = False
        self.active = 0
        self._checking = False
        self._flushed: Counter[str] = Counter()
        self.started_at = int(time.time())

    @staticmethod
    def of(request: Request) -> Service:
        """Return the service of the application that a request came to."""
        service: Service = request.app.state.service
        return service

    @property
    def engine(self) -> AsyncEngine | None:
        """What serves; None until the model is loaded."""
        return self._engine

    @engine.setter
    def engine(self, engine: AsyncEngine | None) -> None:
        self._engine = engine
        if engine is not None:
            engine.on_step = self.metrics.on_step

    @property
    def state(self) -> State:
        """Where the server is in its life."""
        if self.draining:
            return "draining"
        return self.engine.state if self.engine is not None else "loading"

    def ready_engine(self) -> AsyncEngine:
        """Return the engine.

        Raises:
            UnavailableError: loading, draining or dead.
        """
        state = self.state
        if state != "ready" or self.engine is None:
            raise UnavailableError(_MESSAGES[state], state)
        return self.engine

    def model_id(self, engine: AsyncEngine) -> str:
        """Return the name clients see."""
        return self.config.served_model_name or engine.info.model_name

    def salted(self, request: Request) -> str:
        """Whose pages of the prefix cache a request may share, and since which flush."""
        salt = _caller(request)
        return f"{salt}#{self._flushed[salt]}" if salt in self._flushed else salt

    def flush(self, request: Request) -> None:
        """Share no more of the pages that this caller's requests share; they age away."""
        self._flushed[_caller(request)] += 1

    @contextmanager
    def checking(self) -> Iterator[None]:
        """One check at a time: each keeps several requests running.

        Raises:
            QueueFullError: another is running.
        """
        if self._checking:
            raise QueueFullError("another check is running, expected one at a time")
        self._checking = True
        try:
            yield
        finally:
            self._checking = False

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a call as active, so that a shutdown waits for it."""
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1


def _caller(request: Request) -> str:
    salt: str = getattr(request.state, "cache_salt", "")
    return salt
