from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from fake_engine import FakeEngine
from loopback import serving


def _post(body: dict, path: str = "/generate") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def _until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", ["a", "b", "c"]])
@pytest.mark.parametrize("abrupt", [False, True])
def test_client_that_goes_away_aborts_its_requests_at_once(stream, prompt, abrupt):
    async def scenario() -> None:
        engine = FakeEngine(delay=0.02)
        async with serving(engine) as (port, service):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_post({"prompt": prompt, "max_tokens": 200, "stream": stream}))
            await _until(lambda: len(engine.running) == (1 if prompt == "a" else 3))
            if stream:
                assert b"200 OK" in await reader.readline()
            if abrupt:
                writer.transport.abort()
            else:
                writer.close()
            await _until(lambda: not engine.running)
            assert len(engine.aborted) == (1 if prompt == "a" else 3)
            assert service.active == 0
            async with httpx.AsyncClient() as client:
                health = await client.get(f"http://127.0.0.1:{port}/health")
            assert health.status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "requests"),
    [
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 200}, 4),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 2}, 2),
        ("/generate", {"prompt": "a", "n": 3, "max_tokens": 200}, 3),
        ("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 200}}, 1),
    ],
)
def test_so_does_a_client_of_any_other_dialect(stream, path, body, requests):
    async def scenario() -> None:
        engine = FakeEngine(delay=0.02)
        async with serving(engine) as (port, service):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_post({**body, "stream": stream}, path))
            await _until(lambda: len(engine.running) == requests)
            writer.close()
            await _until(lambda: not engine.running)
            assert len(engine.aborted) == requests
            assert service.active == 0

    asyncio.run(scenario())


def test_client_that_goes_away_before_the_first_token_aborts_its_request():
    async def scenario() -> None:
        engine = FakeEngine(delay=60)
        async with serving(engine) as (port, _):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_post({"prompt": "a", "stream": True}))
            await _until(lambda: engine.running)
            writer.close()
            await _until(lambda: engine.aborted)

    asyncio.run(scenario())


def test_client_that_stays_aborts_nothing():
    async def scenario() -> None:
        engine = FakeEngine(delay=0.001)
        async with serving(engine) as (port, service), httpx.AsyncClient() as client:
            bodies = [{"prompt": "ab", "max_tokens": 20, "stream": i % 2 == 0} for i in range(16)]
            url = f"http://127.0.0.1:{port}/generate"
            answers = await asyncio.gather(*(client.post(url, json=body) for body in bodies))
            assert all(answer.status_code == 200 for answer in answers)
            assert engine.aborted == []
            assert (service.active, engine.running) == (0, {})

    asyncio.run(scenario())


def test_events_arrive_one_by_one_and_the_connection_is_kept():
    async def scenario() -> None:
        engine = FakeEngine(delay=0.05)
        async with serving(engine) as (port, _), httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{port}/generate"
            body = {"prompt": "a", "max_tokens": 4, "stream": True}
            async with client.stream("POST", url, json=body) as response:
                first = await anext(response.aiter_raw())
                assert first.count(b"data: ") == 1
                assert len(engine.running) == 1
            async with client.stream("POST", url, json=body) as response:
                chunks = [chunk async for chunk in response.aiter_raw()]
            assert b"".join(chunks).endswith(b"data: [DONE]\n\n")

    asyncio.run(scenario())


def test_slow_upload_is_no_disconnect():
    async def scenario() -> None:
        engine = FakeEngine()
        async with serving(engine) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            request = _post({"prompt": "a", "max_tokens": 2})
            for start in range(0, len(request), 20):
                writer.write(request[start : start + 20])
                await writer.drain()
                await asyncio.sleep(0.005)
            assert b"200 OK" in await reader.readline()
            writer.close()

    asyncio.run(scenario())
