"""From the engine's outputs to the client: a call's answers, whole or in a stream."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.outputs import RequestOutput
from detinfer.errors import RequestError
from detinfer.server.call import Call, in_words_of_client
from detinfer.server.generation import Job, Outputs, run_jobs
from detinfer.server.http.disconnect import until_disconnect
from detinfer.server.http.sse import EventStream, event
from detinfer.server.receipts import Receipts
from detinfer.server.service import Service
from detinfer.server.wire import json_response

MAX_HEADER_DIGESTS = 16  # the body has them all

Value = dict[str, Any]


class Answer(Protocol):
    """What the outputs of one job add up to, in the words of a dialect.

    Attributes:
        receipt: what to say of its receipt beside its digest: nothing, unless one was asked for
            and all outputs have come.
    """

    receipt: Value

    def add(self, output: RequestOutput) -> None:
        """Take one output."""

    def events(self, output: RequestOutput) -> Iterable[Value]:
        """Take one output, for the events that it makes."""

    def value(self) -> Value:
        """Return the finished answer; its digest is where ``Reply.digest`` looks."""


CallT = TypeVar("CallT", bound=Call)
AnswerT = TypeVar("AnswerT", bound=Answer)


class Reply(ABC, Generic[CallT, AnswerT]):
    """The answers to one call; a dialect's own kind has its answers, and puts them together.

    Args:
        request: what came, its body read.
        call: what it asks for.

    Attributes:
        answers: one a job, once the engine has the jobs.
    """

    prefix: ClassVar[str] = "gen"  # of the ids of the jobs
    stream: ClassVar[type[EventStream]] = EventStream

    def __init__(self, request: Request, call: CallT) -> None:
        self.call = call
        self.answers: Sequence[AnswerT] = ()
        self.service = Service.of(request)
        self._request = request
        self._receipts: Receipts | None = None

    @abstractmethod
    async def begin(self, engine: AsyncEngine, jobs: Sequence[Job]) -> Sequence[AnswerT]:
        """Return an answer for each job, to be added to."""

    def events(self, index: int, output: RequestOutput) -> Iterable[Value]:
        """Return the events that an output of a job makes."""
        return self.answers[index].events(output)

    def last_events(self) -> Iterable[Value]:
        """Return the events after those of all outputs."""
        return ()

    @staticmethod
    def event(value: Value) -> bytes:
        """Return an event as the stream sends it."""
        return event(value)

    def values(self) -> list[Value]:
        """Return the finished answers."""
        return [answer.value() for answer in self.answers]

    def body(self, values: list[Value]) -> Value | list[Value]:
        """Put the finished answers together."""
        return values if self.call.many else values[0]

    def digest(self, value: Value) -> str | None:
        """Return the digest of a finished answer."""
        digest: str | None = value["digest"]
        return digest

    async def response(self) -> Response:
        """Answer: when all is there, or as it comes."""
        headers = {"x-detinfer-deterministic": str(self.call.params.deterministic).lower()}
        if self.call.stream:
            return self.stream(self.streamed(), headers)
        await until_disconnect(self._request.receive, self._gathered())
        values = self.values()
        if len(values) <= MAX_HEADER_DIGESTS:  # proxies take no long headers
            headers["x-detinfer-digest"] = ", ".join(str(self.digest(value)) for value in values)
        return json_response(self.body(values), headers=headers)

    async def _gathered(self) -> None:
        with self.service.answering():
            async with aclosing(await self._start()) as outputs:
                async for batch in outputs:
                    for index, output in batch:
                        if self._receipts is not None:
                            self.answers[index].receipt = await self._receipts.add(index, output)
                        self.answers[index].add(output)

    async def streamed(self) -> AsyncGenerator[bytes, None]:
        """Yield what the stream sends, piece by piece."""
        with self.service.answering():
            async with aclosing(await self._start()) as outputs:
                async for batch in outputs:
                    chunks: list[bytes] = []
                    for index, output in batch:
                        if self._receipts is not None:
                            self.answers[index].receipt = await self._receipts.add(index, output)
                        chunks += map(self.event, self.events(index, output))
                    if chunks:
                        yield b"".join(chunks)
            for value in self.last_events():
                yield self.event(value)

    async def _start(self) -> Outputs:
        engine = self.service.ready_engine()
        name = f"{self.prefix}-{uuid.uuid4().hex}"  # clients may choose one id twice
        jobs = await self.call.jobs(engine, name, self.service.salted(self._request))
        self.answers = await self.begin(engine, jobs)
        if self.call.receipt:
            self._receipts = Receipts(engine.info, jobs, self.service.receipt_key)
        return self._in_words_of_client(run_jobs(engine, jobs))

    async def _in_words_of_client(self, outputs: Outputs) -> Outputs:
        async with aclosing(outputs):
            try:
                async for batch in outputs:
                    yield batch
            except RequestError as error:
                raise in_words_of_client(error, self.call.sources) from None


def proof(last: RequestOutput, system_fingerprint: str) -> Value:
    """Return what makes a finished answer comparable and repeatable, under our names."""
    return {
        "deterministic": last.deterministic,
        "seed": last.seed,
        "digest": last.digest,
        "system_fingerprint": system_fingerprint,
    }
