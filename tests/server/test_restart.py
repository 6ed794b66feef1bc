"""A server that is killed, not stopped: nothing on disk is damaged, and answers stay the same."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.http_client import post
from benchmarks.serving import free_port, serving
from detinfer.checkpoint.loader import ModelFiles

pytestmark = (
    pytest.mark.slow
)  # loads the default model several times, once with no kernels compiled

FLAGS = ("--no-fast-mode", "--no-access-log", "--kv-cache-memory", "128MiB")
REQUESTS = [
    {"prompt": f"{start} {word}", "max_tokens": 24, "temperature": t, "seed": 3, "ignore_eos": True}
    for start in ("The oldest", "In a far")
    for word in ("city", "river", "machine")
    for t in (0.0, 0.9)
]


def gone(pid: int) -> bool:
    """Whether a process has ended, its parent having reaped it or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


async def ask(port: int, number: int, **fields: int) -> str:
    async with post(port, "/generate", REQUESTS[number] | fields) as response:
        assert response.status == 200
        return str((await response.json())["digest"])


async def digests(port: int) -> list[str]:
    return await asyncio.gather(*(ask(port, number) for number in range(len(REQUESTS))))


def kill_under_load(port: int, pid: int) -> None:
    """Kills the process while it answers everybody: at the first token of one, far from any end."""

    async def main() -> list[object]:
        numbers = range(len(REQUESTS))
        asking = [asyncio.create_task(ask(port, number, max_tokens=512)) for number in numbers]
        body = REQUESTS[0] | {"max_tokens": 512, "stream": True}
        async with post(port, "/generate", body) as response:
            await anext(response.events())
            os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*asking, return_exceptions=True)

    assert any(isinstance(answer, Exception) for answer in asyncio.run(main())), "killed too late"


def kill_while_compiling(cache: Path) -> None:
    """Kills a starting server as soon as it has begun to keep compiled kernels."""
    command = [sys.executable, "-m", "detinfer.cli", "serve", "--port", "0", *FLAGS]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 300
    while not files(cache):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()


def test_killed_while_compiling_and_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_model: ModelFiles
) -> None:
    (tmp_path / "models").symlink_to(default_model.folder.parent)
    monkeypatch.setenv("DETINFER_CACHE", str(tmp_path))  # no kernels there yet
    kill_while_compiling(tmp_path)
    port = free_port()
    with serving(None, *FLAGS, port=port) as server:
        expected = [asyncio.run(ask(port, number)) for number in range(len(REQUESTS))]
        assert asyncio.run(digests(port)) == expected
        before = files(tmp_path)
        children = server.children()
        kill_under_load(port, server.process.pid)
        deadline = time.monotonic() + 10
        while not all(map(gone, children)):
            assert time.monotonic() < deadline, "the engine outlives the server"
            time.sleep(0.05)
    assert files(tmp_path) == before
    with serving(None, *FLAGS, port=port):
        assert asyncio.run(digests(port)) == expected
    assert files(tmp_path) == before
