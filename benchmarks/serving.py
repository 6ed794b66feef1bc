"""A server of our own to measure: started, waited for, looked at, stopped."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_SECONDS = 300


@dataclass
class Server:
    """A running ``detinfer serve``."""

    port: int
    process: subprocess.Popen[bytes]

    def get(self, route: str) -> Any:
        """Return the JSON value at a route."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{route}", timeout=30) as answer:
            return json.load(answer)

    def stats(self) -> dict[str, int]:
        """Return the engine's counts."""
        stats: dict[str, int] = self.get("/server_info")["stats"]
        return stats

    def idle_stats(self, seconds: float = 20.0) -> dict[str, int]:
        """Return the counts once nothing runs any more, or after ``seconds``."""
        deadline = time.monotonic() + seconds
        while True:
            stats = self.stats()
            busy = stats["running"] or stats["waiting"] or stats["open"]
            if not busy or time.monotonic() > deadline:
                return stats
            time.sleep(0.2)

    def memory(self) -> float:
        """MiB in main memory of the server and its engine's process."""
        return sum(map(_resident, (self.process.pid, *self.children()))) / 1024

    def children(self) -> list[int]:
        """Return the processes it has started, its engine's among them."""
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])  # KiB


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(model: str | None, *flags: str, port: int | None = None) -> Iterator[Server]:
    """Return a server, ready; ended when the block is.

    Args:
        model: folder, ``.gguf`` file or hub id; None is the default model.
        flags: of ``detinfer serve``.
        port: where; None takes a free one.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "detinfer.cli", "serve", "--port", str(port), *flags]
    process = subprocess.Popen([*command, *([model] if model else [])])
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("the server did not get ready") from None
                time.sleep(0.2)
        yield Server(port, process)
    finally:
        process.terminate()
        process.wait(timeout=60)
