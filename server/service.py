"""What the routes share: the engine, once there is one, and the state the server is in."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from starlette.requests import Request

from detinfer.config import ServerConfig
from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.async_solver import AsyncSolver
from detinfer.errors import QueueFullError
from detinfer.receipts.seal import load_key
from detinfer.server.errors import NotServedError, UnavailableError
from detinfer.server.metrics.counts import Metrics

State = Literal["loading", "ready", "draining", "dead"]
Kind = Literal["language model", "solvers"]
LANGUAGE_MODEL: tuple[Kind, ...] = ("language model",)

_MESSAGES = {
    "loading": "the model is still loading",
    "draining": "the server is shutting down and takes no new requests",
    "dead": "the engine process has ended; restart the server",
}
_HOW_TO_SERVE: dict[Kind, str] = {
    "language model": "this server has no language model: detinfer serve MODEL serves one",
    "solvers": "this server has no solver: detinfer serve --solver NAME serves one",
}


class Service:
    """One server's engine and state; touched from the event loop only.

    Args:
        engine: the language model, once it is loaded.
        config: keys, names and limits.
        default_deterministic: what a request gets that does not say.
        solver: the solvers, once they are loaded.
        serves: what is served, or will be when it is loaded.

    Raises:
        ConfigError: the key of receipts cannot be used.

    Attributes:
        draining: set once, at shutdown; new requests are then refused.
        active: calls that are being answered by the engine.
        metrics: what has been served so far.
        receipt_key: what signs receipts, if anything.
    """

    def __init__(
        self,
        engine: AsyncEngine | None,
        config: ServerConfig,
        default_deterministic: bool,
        solver: AsyncSolver | None = None,
        serves: Collection[Kind] = LANGUAGE_MODEL,
    ) -> None:
        self.metrics = Metrics()
        self.engine = engine
        self.solver = solver
        self.serves = serves
        self.config = config
        self.default_deterministic = default_deterministic
        self.receipt_key = load_key(Path(config.receipt_key)) if config.receipt_key else None
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
        """Where the server is in its life; ready when all that it serves is."""
        states = [self._state_of(kind) for kind in self.serves]
        return next((state for state in states if state != "ready"), "ready")

    def check_ready(self) -> None:
        """Return if all that is served can be asked.

        Raises:
            UnavailableError: loading, draining or dead.
        """
        if self.state != "ready":
            raise UnavailableError(_MESSAGES[self.state], self.state)

    def ready_engine(self) -> AsyncEngine:
        """Return the language model's engine.

        Raises:
            NotServedError: this server has none.
            UnavailableError: loading, draining or dead.
        """
        self._check("language model")
        assert self.engine is not None
        return self.engine

    def ready_solver(self) -> AsyncSolver:
        """Return the solvers.

        Raises:
            NotServedError: this server has none.
            UnavailableError: loading, draining or dead.
        """
        self._check("solvers")
        assert self.solver is not None
        return self.solver

    def _state_of(self, kind: Kind) -> State:
        served = self.engine if kind == "language model" else self.solver
        return "draining" if self.draining else "loading" if served is None else served.state

    def _check(self, kind: Kind) -> None:
        if kind not in self.serves:
            raise NotServedError(_HOW_TO_SERVE[kind])
        if (state := self._state_of(kind)) != "ready":
            raise UnavailableError(_MESSAGES[state], state)

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
