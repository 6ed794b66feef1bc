"""Seconds: of a head, of a body, of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from loopback import serving

from detinfer.server import limits
from detinfer.server.http.slow_reader import SlowReaderWatch

BODY = b'{"prompt": "a", "max_tokens": 2}'
HEAD = f"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


async def _until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def _drip(start: bytes, drop: bytes) -> tuple[int, bytes, float, FakeEngine]:
    """Send ``start``, then ``drop`` again and again; what came back, and after how long."""

    async def scenario() -> tuple[int, bytes, float, FakeEngine]:
        engine = FakeEngine()
        async with serving(engine, request_timeout=0.3) as (port, service):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            begin = time.perf_counter()
            writer.write(start)

            async def dripping() -> None:
                while True:
                    await asyncio.sleep(0.05)
                    writer.write(drop)

            drip = asyncio.create_task(dripping())
            async with asyncio.timeout(5):
                answer = await reader.read()  # to the connection's end
            seconds = time.perf_counter() - begin
            drip.cancel()
            writer.close()
            assert service.active == 0
        return int(answer[9:12] or b"0"), answer.partition(b"\r\n\r\n")[2], seconds, engine

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("start", "drop", "status"),
    [
        (b"", b"", 0),  # says nothing: nothing is owed
        (b"", b"\r\n", 0),
        (b"GET /hea", b"l", 408),
        (HEAD[:-2], b"A: b\r\n", 408),
        (HEAD, b"", 408),
        (HEAD + BODY[:5], b" ", 408),
        (HEAD.replace(b"Content-Length: 32", b"Transfer-Encoding: chunked"), b"1\r\n \r\n", 408),
    ],
    ids=["silent", "newlines", "slow line", "slow headers", "no body", "slow body", "slow chunks"],
)
def test_a_request_that_does_not_arrive_is_ended_in_time(start, drop, status):
    got, body, seconds, engine = _drip(start, drop)
    assert got == status
    assert 0.25 < seconds < 3
    assert engine.prompts == []
    if status:
        error = json.loads(body)["error"]
        assert (error["type"], error["code"]) == ("timeout_error", "request_timeout")
        assert "in 0.3 s" in error["message"]


def test_pipelined_requests_are_answered_in_order_and_their_heads_not_added_up():
    head = b"POST /generate HTTP/1.1\r\nHost: t\r\nA: " + b"b" * 40_000 + b"\r\n"
    whole = head + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY

    async def scenario() -> None:
        engine = FakeEngine(delay=0.02)
        async with serving(engine) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(whole * 3 + head)  # the last one is cut off in its head
            await asyncio.sleep(0.1)
            writer.write(
                f"Content-Length: {len(BODY)}\r\nConnection: close\r\n\r\n".encode() + BODY
            )
            answer = await asyncio.wait_for(reader.read(), 5)
            assert answer.count(b"HTTP/1.1 200") == 4
            writer.close()

    asyncio.run(scenario())


def test_slow_generation_and_idle_connections_are_no_slow_requests():
    async def scenario() -> None:
        engine = FakeEngine(delay=0.15)
        async with serving(engine, request_timeout=0.2) as (port, _), httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{port}/generate"
            for stream in (False, True):
                body = {"prompt": "a", "max_tokens": 4, "stream": stream}
                answer = await client.post(url, json=body)
                assert answer.status_code == 200
                assert '"finish_reason":"length"' in answer.text
                await asyncio.sleep(0.4)  # the connection is kept

    asyncio.run(scenario())


@pytest.mark.parametrize("prompt", ["a", ["a", "b", "c"]])
def test_an_answer_that_takes_too_long_is_a_504_and_its_requests_are_aborted(make_client, prompt):
    engine = FakeEngine(time_out_after=3)
    client = make_client(engine)
    answer = client.generate({"prompt": prompt, "max_tokens": 200})
    assert answer.status_code == 504
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "timeout")
    assert (engine.running, client.app.state.service.active) == ({}, 0)
    assert len(engine.aborted) == (1 if prompt == "a" else 3)


@pytest.mark.parametrize("tokens", [0, 3])
def test_a_stream_that_takes_too_long_ends_with_an_error(make_client, tokens):
    engine = FakeEngine(time_out_after=tokens)
    client = make_client(engine)
    answer = client.generate({"prompt": ["a", "b"], "max_tokens": 200, "stream": True})
    if tokens == 0:  # before its first event
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
    else:
        assert answer.status_code == 200
        *_, failure, done, empty = answer.text.split("\n\n")
        assert json.loads(failure.removeprefix("data: "))["error"]["code"] == "timeout"
        assert (done, empty) == ("data: [DONE]", "")
    assert (engine.running, client.app.state.service.active) == ({}, 0)
    assert len(engine.aborted) == 2


def test_bodies_of_open_calls_are_bounded_together(monkeypatch):
    monkeypatch.setattr(limits, "MAX_OPEN_BYTES", 3 * len(BODY))
    whole = HEAD + BODY
    chunked = HEAD.replace(b"Content-Length: 32", b"Transfer-Encoding: chunked")
    chunked += f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n"

    async def scenario() -> None:
        engine = FakeEngine(delay=60)
        async with serving(engine) as (port, service):

            async def send(request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                return reader, writer

            async def status(request: bytes) -> bytes:
                reader, writer = await send(request)
                line = await asyncio.wait_for(reader.readline(), 5)
                assert b"retry-after: 1" in await reader.readuntil(b"\r\n\r\n")
                writer.close()
                return line.split()[1]

            waiting = [await send(whole) for _ in range(3)]
            await _until(lambda: len(engine.running) == 3)
            assert await status(HEAD) == b"429"  # refused before it comes
            assert await status(chunked) == b"429"
            # Those that leave make room, and so did the refused ones.
            for _, writer in waiting:
                writer.close()
            await _until(lambda: not service.active)
            again = [await send(part) for part in (whole, chunked + b"0\r\n\r\n", whole)]
            await _until(lambda: len(engine.running) == 3)
            for _, writer in again:
                writer.close()
            await _until(lambda: not service.active)

    asyncio.run(scenario())


def test_client_that_leaves_within_its_body_is_no_error_of_ours(caplog):
    async def scenario() -> None:
        async with serving(FakeEngine()) as (port, service):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + BODY[:5])
            await asyncio.sleep(0.05)
            writer.close()
            await _until(lambda: service.metrics.http_requests)
            assert list(service.metrics.http_requests) == [("POST", "/generate", "499")]

    asyncio.run(scenario())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def _ask_for_seven_megabytes(
    port: int, stream: bool
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An answer far longer than what the two sockets hold of it; then the connection ends."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sock.connect(("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock)
    asked = {"prompt": "a", "n": 98, "max_tokens": 254, "logprobs": 20, "stream": stream}
    body = json.dumps(asked).encode()
    head = HEAD.replace(b"32", str(len(body)).encode())
    writer.write(head.replace(b"Host: t", b"Host: t\r\nConnection: close") + body)
    return reader, writer


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("request_timeout", [0.3, 0])
def test_a_client_that_stops_reading_is_let_go(request_timeout, stream):
    async def scenario() -> None:
        async with serving(FakeEngine(), request_timeout=request_timeout) as (port, service):
            reader, writer = await _ask_for_seven_megabytes(port, stream)
            assert await reader.readexactly(15) == b"HTTP/1.1 200 OK"
            if request_timeout:  # however long the answer takes to make
                await _until(lambda: not service.active)
            await asyncio.sleep(1.5)
            read = 0
            try:
                async with asyncio.timeout(10):
                    while part := await reader.read(1 << 20):
                        read += len(part)
            except ConnectionResetError:
                assert request_timeout
            assert (read < 6_500_000) == bool(request_timeout)
            writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_reads_slowly_gets_everything(stream):
    async def scenario() -> None:
        async with serving(FakeEngine(), request_timeout=0.3) as (port, _):
            reader, writer = await _ask_for_seven_megabytes(port, stream)
            begin, read = time.perf_counter(), 0
            while part := await reader.read(1 << 17):
                read += len(part)
                await asyncio.sleep(0.02)
            writer.close()
            assert time.perf_counter() - begin > 0.9
            assert read > 6_500_000

    asyncio.run(scenario())


class _Transport(asyncio.Transport):
    """A socket's other end, of which only what waits can be seen."""

    def __init__(self, sock: socket.socket, waiting: int) -> None:
        super().__init__({"socket": sock})
        self.waiting = waiting
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        self.aborted = True


class _Clock:
    """The loop of a watch: seconds pass when the test says so."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Any]] = []
        self.now = 0.0

    def call_later(self, seconds: float, call: Any, *args: Any) -> Any:
        timer = (self.now + seconds, lambda: call(*args))
        self.timers.append(timer)
        return SimpleNamespace(cancel=lambda: timer in self.timers and self.timers.remove(timer))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        while self.timers and self.timers[0][0] <= self.now:
            self.timers.pop(0)[1]()


def _filled_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection whose buffers hold all they can, of megabytes that wait."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.socket()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        theirs.connect(listener.getsockname())
        ours, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))
    return ours, theirs


@pytest.mark.parametrize("reads", [True, False])
def test_progress_is_what_the_peer_has_taken_not_room_in_our_own_socket(reads):
    ours, theirs = _filled_pair()
    with ours, theirs:
        clock, transport = _Clock(), _Transport(ours, 10 << 20)
        watch = SlowReaderWatch(clock, transport, 20.0)  # type: ignore[arg-type]
        watch.start()
        for _ in range(20):  # a minute and a half, in which none of our own buffer can leave
            if reads:
                theirs.recv(40_000, socket.MSG_WAITALL)
            clock.advance(4.5)
        assert transport.aborted != reads
        assert bool(clock.timers) == reads
        watch.stop()
        assert not clock.timers


def test_zero_is_no_limit():
    async def scenario() -> None:
        async with serving(FakeEngine(), request_timeout=0) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD)
            await asyncio.sleep(0.1)
            writer.write(BODY)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()

    asyncio.run(scenario())
