"""``detinfer serve`` with a fake engine: serve_fake.py LOAD_SECONDS TOKEN_SECONDS [FLAGS].

A negative LOAD_SECONDS makes loading fail.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from fake_engine import FakeEngine

from detinfer import cli
from detinfer.errors import ModelLoadError
from detinfer.server import run

load_seconds, token_seconds = float(sys.argv[1]), float(sys.argv[2])


class _Starter:
    @staticmethod
    async def start(config: Any, max_queue_size: int, **options: Any) -> FakeEngine:
        print(f"starting {config.model} {max_queue_size}", flush=True)
        if load_seconds < 0:
            raise ModelLoadError("model 'nope': no such file or folder")
        await asyncio.sleep(load_seconds)
        return FakeEngine(delay=token_seconds)


run.AsyncEngine = _Starter  # type: ignore[misc,assignment]
sys.exit(cli.main(["serve", *sys.argv[3:]]))
