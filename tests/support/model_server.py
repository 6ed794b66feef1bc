"""``detinfer serve`` in a process of its own."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

START_SECONDS = 300  # a first start fetches the model and compiles the kernels


@contextlib.contextmanager
def served(log: Path, *flags: str) -> Iterator[str]:
    """The URL of the default model on a free port, unless ``flags`` say what else to serve.

    At the end the server must stop as a healthy one does, having logged no error to ``log``.
    """
    command = [sys.executable, "-m", "detinfer.cli", "serve", "--port", "0", "--no-access-log"]
    with log.open("w") as stderr:
        process = subprocess.Popen([*command, *flags], stderr=stderr)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (ready := re.search(r"ready on (http://\S+)", log.read_text())):
            assert process.poll() is None, f"the server ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"not ready in time:\n{log.read_text()}"
            time.sleep(0.1)
        yield ready[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert not re.search(r"error|traceback", log.read_text(), re.IGNORECASE), log.read_text()
    finally:
        process.kill()
        process.wait()


def assert_idle(url: str, key: str = "none") -> None:
    """Nothing runs or waits, no puzzle either, and every page of the KV cache is free again."""
    for _ in range(50):
        headers = {"authorization": f"Bearer {key}"}
        info = httpx.get(f"{url}/server_info", headers=headers).json()
        stats, puzzles = info["stats"], info.get("solvers", {}).get("stats", {"open": 0})
        # Before the first step neither is told.
        free = stats.get("free_pages") == stats.get("num_pages")
        if stats["open"] + puzzles["open"] == 0 and free:
            return
        time.sleep(0.1)  # the engine may still be ending what a client has just left
    raise AssertionError(stats)
