"""The server's side of an engine's process: one stream for each request, on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

from detinfer.engine.channel import EXIT_TIMEOUT, Channel, within
from detinfer.engine.process import (
    Abort,
    AbortAll,
    Add,
    EngineFactory,
    Exit,
    Hosted,
    Logs,
    Ready,
    Stepped,
)
from detinfer.engine.streams import Stream, Streams
from detinfer.errors import DetinferError, EngineDeadError

logger = logging.getLogger(__name__)

_LOAD_TIMEOUT = 1800.0  # seconds; a first start may fetch a model and compile kernels
_STEP_TIMEOUT = 600.0  # seconds without a step, while requests are open: the engine hangs


class Told(Protocol):
    """What an engine says of itself.

    Attributes:
        max_num_seqs: requests that can run at a time.
    """

    @property
    def max_num_seqs(self) -> int: ...  # noqa: D102


Info = TypeVar("Info", bound=Told)
Output = TypeVar("Output")


class Remote(Generic[Info, Output]):
    """An engine in its own process, whatever it computes.

    Made by ``start`` and used from one event loop.

    Attributes:
        info: what the loaded engine says of itself.
        tokenizer: the engine's tokenizer, if it has one.
        on_step: told of every step of the engine, on the event loop.
        state: "ready"; "draining" from ``shutdown`` on; "dead" when the process is gone.
    """

    info: Info
    tokenizer: Any
    on_step: Callable[[Stepped], None] | None = None

    output: ClassVar[Callable[..., Any]]  # makes an output of its wire
    fields: ClassVar[tuple[int, int]]  # of a wire: the request's id; what is None but in the last
    reading: ClassVar[str | None] = None  # a module that reading the first message takes

    def __init__(
        self,
        config: Any,
        max_queue_size: int,
        factory: EngineFactory,
        step_timeout: float,
        generation_timeout: float,
        logs: Logs,
    ) -> None:
        self.state: Literal["ready", "draining", "dead"] = "ready"
        self._stats: dict[str, int] = {}
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._death: DetinferError | None = None  # why the process is gone
        self._streams = Streams(
            max_queue_size, generation_timeout, lambda name: self._channel.send(Abort(name))
        )
        self._channel = Channel(
            config,
            factory,
            logs,
            step_timeout,
            reading=self.reading,
            is_owed=lambda: bool(self._streams),
            deliver=self._deliver,
            refuse=lambda name, error: self._streams.put(name, error, last=True),
            over=self._over,
        )

    @staticmethod
    def load(config: Any) -> Hosted:
        """Make the engine, in the new process; a kind of engine has its own."""
        raise NotImplementedError

    @classmethod
    async def start(
        cls,
        config: Any,
        max_queue_size: int,
        *,
        factory: EngineFactory | None = None,
        load_timeout: float = _LOAD_TIMEOUT,
        step_timeout: float = _STEP_TIMEOUT,
        generation_timeout: float = 0.0,
        logs: Logs = contextlib.nullcontext,
    ) -> Self:
        """Spawn the process and wait until its model is loaded.

        Args:
            config: the engine's settings.
            max_queue_size: requests accepted beyond those that can run.
            factory: makes the engine, in the new process, in place of ``load``; must be picklable.
            load_timeout: seconds to wait for the model.
            step_timeout: seconds without a step after which the process is taken to hang, and
                killed.
            generation_timeout: seconds from a request's first step to its end, however long it
                waited before; 0 is for ever.
            logs: entered by the process for as long as it runs; must be picklable.

        Raises:
            ModelLoadError: and every other error of loading, as it was raised in the process.
            EngineDeadError: if the process ended without a word, or took too long.
        """
        factory = factory or cls.load
        engine = cls(config, max_queue_size, factory, step_timeout, generation_timeout, logs)
        try:
            async with asyncio.timeout(load_timeout):
                engine.info, engine.tokenizer = await engine._ready
            engine._streams.capacity += engine.info.max_num_seqs
        except BaseException as error:
            await engine._channel.kill()
            if isinstance(error, TimeoutError):
                raise EngineDeadError(f"the engine did not load in {load_timeout:g} s") from None
            raise
        return engine

    async def _outputs(
        self, add: Add, size: int, check: Callable[[], object]
    ) -> AsyncGenerator[Output, None]:
        """Yield what comes of a request; closing or cancelling the iterator aborts it.

        Args:
            add: the command that starts it.
            size: tokens of its prompt.
            check: raises where the request cannot be served as asked.
        """
        stream = self._open(add, size, check)
        make, last = type(self).output, self.fields[1]
        try:
            while True:
                item = await stream.items.get()
                if isinstance(item, DetinferError):
                    raise item
                yield make(*item)
                if item[last] is not None:
                    return
        finally:
            if self._streams.close(add.request_id, stream):
                self._channel.send(Abort(add.request_id))

    async def stats(self) -> dict[str, int]:
        """Return the engine's counts as of its last step, and the number of ``open`` requests."""
        return {**self._stats, "open": len(self._streams)}

    @property
    def capacity(self) -> int:
        """Requests that can be open at a time."""
        return self._streams.capacity

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._channel.pid

    async def ended(self) -> str:
        """Wait until the process is gone; says why it is."""
        await self._channel.gone.wait()
        return str(self._death)

    async def shutdown(self, timeout: float) -> None:
        """End the process; bounded by ``timeout`` and some seconds.

        Open requests may finish within ``timeout`` seconds; the others then end with finish reason
        "abort" and an error that says so.
        """
        if self.state == "ready":
            self.state = "draining"
        if not await within(timeout, self._streams.idle):
            self._channel.send(AbortAll("the server is shutting down"))
            await within(EXIT_TIMEOUT, self._streams.idle)
        self._channel.send(Exit())
        await within(EXIT_TIMEOUT, self._channel.gone)
        await self._channel.kill()

    def _open(self, add: Add, size: int, check: Callable[[], object]) -> Stream:
        if self.state != "ready":
            raise EngineDeadError(str(self._death or "the server is shutting down"))
        check()
        if not self._streams:
            self._channel.last_sign = time.monotonic()
        stream = self._streams.open(add.request_id, size)
        self._channel.send(add)
        return stream

    def _deliver(self, message: Ready | Stepped) -> None:
        match message:
            case Stepped():
                self._stats = message.stats
                self._tell(message)
                for request_id in message.started:
                    self._streams.start(request_id)
                name, last = self.fields
                for wire in message.outputs:
                    self._streams.put(wire[name], wire, last=wire[last] is not None)
                for request_id, error in message.refused:
                    self._streams.put(request_id, error, last=True)
            case Ready():
                if not self._ready.done():
                    self._ready.set_result(message)

    def _tell(self, message: Stepped) -> None:
        try:
            if self.on_step is not None:
                self.on_step(message)
        except Exception:  # whoever counts steps has no part in anyone's answer
            logger.exception("on_step failed")

    def _over(self, why: DetinferError) -> None:
        self.state = "dead"
        self._death = why
        # Nobody runs or waits any more, and whatever they held is gone.
        self._stats |= {"running": 0, "waiting": 0}
        self._stats["free_pages"] = self._stats.get("num_pages", 0)
        if not self._ready.done():
            self._ready.set_exception(why)
        self._streams.put_all(str(why), EngineDeadError)
