"""``detinfer serve`` with the real engine process and no model: serve_process.py FACTORY [FLAGS].

FACTORY is one of fake_runner's. Says the engine's process id on stdout.
"""

from __future__ import annotations

import sys
from typing import Any

from detinfer import cli
from detinfer.engine.async_engine import AsyncEngine
from detinfer.server import run


class _Starter:
    @staticmethod
    async def start(config: Any, max_queue_size: int, **options: Any) -> AsyncEngine:
        import fake_runner

        factory = getattr(fake_runner, sys.argv[1])
        engine = await AsyncEngine.start(config, max_queue_size, factory=factory, **options)
        print(engine.pid, flush=True)
        return engine


if __name__ == "__main__":  # the engine's process imports this file again
    run.AsyncEngine = _Starter  # type: ignore[misc,assignment]
    sys.exit(cli.main(["serve", *sys.argv[2:]]))
