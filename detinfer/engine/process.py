"""The engine's own process: commands in, one message a step out.

Nothing heavy is imported here: the factory that makes the engine is the first to load numba and
torch, and does it in the process's main thread, which then runs every step.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from detinfer.config import EngineConfig
from detinfer.engine.outputs import Wire
from detinfer.errors import DetinferError, EngineDeadError, ModelLoadError, RequestError
from detinfer.garbage import uncollected

if TYPE_CHECKING:
    from detinfer.engine.engine import Engine

logger = logging.getLogger(__name__)

Logs = Callable[[], AbstractContextManager[Any]]


class Output(Protocol):
    """What a step brought to one request."""

    def to_wire(self) -> Wire:
        """Return it as a plain tuple."""


class Hosted(Protocol):
    """What a process of this kind runs: a language model's engine, or a solver's.

    Attributes:
        info: what the other side needs to know of it.
        tokenizer: likewise; None where there is no text.
        started: ids of requests that the last step ran for the first time.
        refused: requests that the last step found not to be served as asked.
    """

    @property
    def info(self) -> Any: ...  # noqa: D102
    @property
    def tokenizer(self) -> Any: ...  # noqa: D102
    @property
    def started(self) -> list[str]: ...  # noqa: D102
    @property
    def refused(self) -> Sequence[tuple[str, DetinferError]]: ...  # noqa: D102

    def add_request(self, request_id: str, *request: Any) -> None:
        """Queue a request."""

    def abort(self, request_id: str) -> object:
        """End a request, if there is such a one."""

    def abort_all(self, reason: str) -> Sequence[Output]:
        """End every request and return their last outputs."""

    def has_unfinished(self) -> bool:
        """Whether a step has work to do."""

    def step(self) -> Sequence[Output]:
        """Work on the requests and return what came of it."""

    def stats(self) -> dict[str, int]:
        """Count what there is now, and what has been since the start."""


EngineFactory = Callable[[Any], Hosted]  # of the engine's settings


class Add(NamedTuple):
    """Command: start a request.

    Attributes:
        request: what the engine's ``add_request`` takes beside the id.
    """

    request_id: str
    request: tuple[Any, ...]


class Abort(NamedTuple):
    """Command: end a request that nobody waits for."""

    request_id: str


class AbortAll(NamedTuple):
    """Command: end every request and tell those who wait why."""

    reason: str


class Exit(NamedTuple):
    """Command: leave the process."""


Command = Add | Abort | AbortAll | Exit


class Ready(NamedTuple):
    """First message of an engine that loaded."""

    info: Any
    tokenizer: Any


class Failed(NamedTuple):
    """Last message of an engine that could not load, or broke."""

    error: DetinferError


class Stepped(NamedTuple):
    """What one round brought: all increments, requests refused, and the engine's counts.

    Attributes:
        started: ids of requests that have run for the first time.
    """

    outputs: list[Wire]
    refused: list[tuple[str, DetinferError]]
    started: list[str]
    stats: dict[str, int]

    @property
    def num_tokens(self) -> int:
        """Tokens that went through the model."""
        return self.stats["step_tokens"]


Message = Ready | Failed | Stepped


def load_engine(config: EngineConfig) -> Engine:
    """Return the factory outside tests."""
    with uncollected():
        from detinfer.engine.engine import Engine

    engine = Engine(config)
    engine.prepare()
    return engine


def run_engine_process(
    connection: Connection,
    config: Any,
    factory: EngineFactory,
    logs: Logs = contextlib.nullcontext,
) -> None:
    """Entry point of the spawned process: loads, then serves until told to exit or orphaned."""
    # Ctrl-C and a service manager's SIGTERM reach the whole process group, but ending is the
    # parent's to decide: it drains first. It kills with SIGKILL.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, name="parent-watch", daemon=True).start()
    with logs():
        try:
            engine = _load(connection, config, factory)
            if engine is not None:
                _serve(engine, connection)
        except (EOFError, ConnectionError):
            pass  # the parent is gone, or has let go
        except Exception:
            logger.exception("the engine's process ends")
            sys.exit(1)


def _load(connection: Connection, config: Any, factory: EngineFactory) -> Hosted | None:
    try:
        engine = factory(config)
    except DetinferError as error:
        connection.send(Failed(error))
        return None
    except Exception as error:
        connection.send(Failed(ModelLoadError(f"model: {type(error).__name__}: {error}")))
        raise
    connection.send(Ready(engine.info, engine.tokenizer))
    return engine


def _serve(engine: Hosted, connection: Connection) -> None:
    while True:
        outputs: list[Wire] = []
        refused: list[tuple[str, DetinferError]] = []
        busy = engine.has_unfinished()
        while connection.poll(0 if busy else None):  # blocks only while there is nothing to do
            busy = True
            command: Command = connection.recv()
            match command:
                case Add():
                    try:
                        engine.add_request(command.request_id, *command.request)
                    except RequestError as error:
                        refused.append((command.request_id, error))
                    except Exception as error:
                        message = f"the request failed: {type(error).__name__}: {error}"
                        refused.append((command.request_id, DetinferError(message)))
                case Abort():
                    engine.abort(command.request_id)
                case AbortAll():
                    outputs += [output.to_wire() for output in engine.abort_all(command.reason)]
                case Exit():
                    return
        try:
            outputs += [output.to_wire() for output in engine.step()]
        except Exception as error:
            message = f"the engine failed: {type(error).__name__}: {error}"
            connection.send(Failed(EngineDeadError(message)))
            raise
        refused += engine.refused
        connection.send(Stepped(outputs, refused, engine.started, engine.stats()))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
