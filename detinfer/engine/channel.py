"""The engine's process as an event loop has it: commands in, messages out, and every way to die."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import logging
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from detinfer.engine.process import (
    Add,
    Command,
    EngineFactory,
    Failed,
    Logs,
    Ready,
    Stepped,
    run_engine_process,
)
from detinfer.errors import DetinferError, EngineDeadError

logger = logging.getLogger(__name__)

EXIT_TIMEOUT = 5.0  # seconds to notice that it is over


class Channel:
    """A process with an engine, and the pipe to it.

    Two threads stand between the loop and the pipe, so that neither a full pipe nor a busy engine
    can block it: the loop is woken once a step.

    Args:
        config: the engine's settings.
        factory: makes the engine, in the new process; must be picklable.
        logs: entered by the process for as long as it runs; must be picklable.
        step_timeout: seconds of silence after which the process is taken to hang, and killed.
        reading: a module that reading its first message takes, imported while it loads.
        is_owed: whether anybody waits, so that silence counts; asked in a thread.
        deliver: told of every message.
        refuse: told of a request that could not be sent, and why.
        over: told why the process is gone.

    Attributes:
        last_sign: monotonic time from which silence counts: that of the last message, or later.
        gone: set when the process is, and ``over`` was told.
    """

    def __init__(
        self,
        config: Any,
        factory: EngineFactory,
        logs: Logs,
        step_timeout: float,
        *,
        reading: str | None,
        is_owed: Callable[[], bool],
        deliver: Callable[[Ready | Stepped], None],
        refuse: Callable[[str, DetinferError], None],
        over: Callable[[DetinferError], None],
    ) -> None:
        self.last_sign = 0.0
        self.gone = asyncio.Event()
        self._step_timeout, self._reading = step_timeout, reading
        self._is_owed, self._deliver, self._refuse, self._over = is_owed, deliver, refuse, over
        self._loop = asyncio.get_running_loop()
        self._death: DetinferError | None = None  # why the process ends, where that is known
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=run_engine_process,
            args=(theirs, config, factory, logs),
            name="detinfer-engine",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        # multiprocessing joins its children at exit, after a SIGTERM that this one ignores.
        atexit.register(self._process.kill)
        for target in (self._read, self._write):
            threading.Thread(target=target, name=f"engine{target.__name__}", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    def send(self, command: Command) -> None:
        """Send a command, in the order of the calls, and return at once."""
        self._commands.put(command)

    async def kill(self) -> None:
        """End the process, if it has not ended."""
        self._process.kill()
        await within(2 * EXIT_TIMEOUT, self.gone)
        atexit.unregister(self._process.kill)

    # On the event loop

    def _ended(self, exit_code: int | None) -> None:
        self._over(self._death or EngineDeadError(_how_it_ended(exit_code)))
        self.gone.set()

    # In threads of their own

    def _read(self) -> None:
        try:
            if self._reading is not None:
                importlib.import_module(self._reading)
            while True:
                while not self._connection.poll(min(1.0, self._step_timeout)):
                    self._kill_if_hanging()
                message = self._connection.recv()
                self.last_sign = time.monotonic()
                if isinstance(message, Failed):
                    self._death = message.error
                else:
                    self._loop.call_soon_threadsafe(self._deliver, message)
        except (EOFError, OSError):
            pass  # the process is gone
        except Exception as error:
            # A message nobody can read, or nobody is there to: a closed loop.
            self._death = EngineDeadError(f"the engine is cut off: {type(error).__name__}: {error}")
            self._process.kill()
        self._process.join(EXIT_TIMEOUT)
        self._commands.put(None)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended, self._process.exitcode)

    def _kill_if_hanging(self) -> None:
        if self._is_owed() and time.monotonic() - self.last_sign > self._step_timeout:
            message = f"the engine did not end a step in {self._step_timeout:g} s"
            self._death = self._death or EngineDeadError(message)
            self._process.kill()

    def _write(self) -> None:
        while (command := self._commands.get()) is not None:
            try:
                self._connection.send(command)
            except OSError:
                pass  # the process is gone
            except Exception as error:  # a request that cannot be pickled
                logger.exception("a command could not be sent")
                if isinstance(command, Add):
                    why = DetinferError(f"the request failed: {type(error).__name__}: {error}")
                    with contextlib.suppress(RuntimeError):  # a closed loop
                        self._loop.call_soon_threadsafe(self._refuse, command.request_id, why)
        self._connection.close()


async def within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for an event, but not for ever; whether it came."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):  # a signal without a name
            name = signal.Signals(-exit_code).name
            hint = ", as a system does that runs out of memory" if name == "SIGKILL" else ""
            return f"the engine process was ended by {name}{hint}"
    return f"the engine process ended (exit code {exit_code})"
