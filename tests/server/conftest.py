from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from detinfer.config import ServerConfig
from detinfer.server.app import create_app


class Client:
    """A synchronous face of the application: each call is one whole exchange in memory."""

    def __init__(self, engine: FakeEngine | None, config: ServerConfig, **options: Any) -> None:
        self.app = create_app(engine, config, **options)  # type: ignore[arg-type]

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def exchange() -> httpx.Response:
            # The application must turn every error into an answer by itself.
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(exchange())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        key = "content" if isinstance(body, bytes) else "json"
        return self.request("POST", path, **{key: body}, **options)

    def generate(self, body: object, **options: Any) -> httpx.Response:
        return self.post("/generate", body, **options)


@pytest.fixture
def make_client() -> Callable[..., Client]:
    def make(engine: FakeEngine | None = None, *, loading: bool = False, **settings: Any) -> Client:
        options = {
            name: settings.pop(name) for name in ("default_deterministic",) if name in settings
        }
        engine = None if loading else engine or FakeEngine()
        return Client(engine, ServerConfig(**settings), **options)

    return make


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()
