"""Spawned processes that do a task at a time, and may die of it.

A compiler can abort its whole process, so a worker's death is the task's answer and no more.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_TIMEOUT = 300.0  # seconds; a compilation takes one, so a process this late is stuck
_MESSAGE = 400  # characters kept of a compiler's complaint


class TaskError(Exception):
    """A task that raised, died or hung; its text is one line."""


class Workers:
    """So many processes, and the threads that wait for them. A context manager.

    Args:
        folder: for Triton's cache and what the compiler prints; the caller deletes it.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self._threads = ThreadPoolExecutor(count)
        self._all = [_Worker(folder, number) for number in range(count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.stop()
        self._threads.shutdown(cancel_futures=True)  # each sees its worker's end
        for worker in self._all:
            worker.join()

    def map(self, task: Callable[[T], R], given: Sequence[T]) -> Iterator[tuple[T, R | TaskError]]:
        """Each argument with its answer, as they come."""
        futures: dict[Future[R], T] = {self._threads.submit(self._do, task, a): a for a in given}
        for future in as_completed(futures):
            error = future.exception()
            if error is None:
                yield futures[future], future.result()
            elif isinstance(error, TaskError):
                yield futures[future], error
            else:
                raise error

    def _do(self, task: Callable[[T], R], argument: T) -> R:
        worker = self._idle.get()
        try:
            answer: R = worker.do(task, argument)
            return answer
        finally:
            self._idle.put(worker)


class _Worker:
    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._log = folder, folder / f"worker-{number}.log"
        self._process: Any = None
        self._stopped = False

    def do(self, task: Callable[[T], Any], argument: T) -> Any:
        if self._stopped:
            raise TaskError("stopped")
        if self._process is None:
            self._start()
        printed = self._log.stat().st_size if self._log.exists() else 0
        try:
            self._connection.send((task, argument))
            if not self._connection.poll(_TIMEOUT):
                self._end()
                raise TaskError(f"no answer after {_TIMEOUT:g} s")
            good, answer = self._connection.recv()
        except (EOFError, OSError):
            status = self._end()
            raise TaskError(f"died with status {status}{self._complaint(printed)}") from None
        if not good:
            raise TaskError(f"{answer}{self._complaint(printed)}")
        return answer

    def stop(self) -> None:
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def join(self) -> None:
        if self._process is not None:
            self._process.join()
            self._connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._folder, self._log), daemon=True
        )
        self._process.start()
        theirs.close()

    def _end(self) -> int | None:
        self._process.join(1.0)
        self._process.kill()
        self._process.join()
        self._connection.close()
        status: int | None = self._process.exitcode
        self._process = None
        return status

    def _complaint(self, since: int) -> str:
        """Return the first error the compiler printed; the rest is its whole program."""
        if not self._log.exists():
            return ""
        with self._log.open(errors="replace") as log:
            log.seek(since)
            lines = [line for line in log if "error:" in line or "LLVM ERROR" in line]
        return f" ({one_line(lines[0])})" if lines else ""


def one_line(text: str) -> str:
    """Return a message without line breaks, cut to a length that can be read."""
    text = " ".join(text.split())
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]}…"


def _serve(connection: Connection, folder: Path, log: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    # Read when a kernel is decorated, so before any is imported: here kernels are compiled.
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")
    with log.open("ab") as file:  # C++ prints to the descriptors themselves
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    while True:
        try:
            task, argument = connection.recv()
        except EOFError:
            return
        try:
            answer = True, task(argument)
        except Exception as error:
            answer = False, one_line(f"{type(error).__name__}: {error}")
        connection.send(answer)
