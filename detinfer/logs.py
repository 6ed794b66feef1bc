"""What a server's processes write to stderr: one format, and nothing that anyone waits for.

Records go through a bounded queue to a thread: a pipe that nobody reads costs lines, which are
counted, and never a step or the event loop's time.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import queue
import re
import select
import sys
import threading
import time
from collections.abc import Iterator
from os import write
from typing import Any

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

_MOST_WAITING = 10_000  # records
_LAST_SECONDS = 2.0  # for what waits when a process ends
_PLAIN = re.compile(r"[A-Za-z0-9_./:,+-]+")

log = logging.getLogger("detinfer")


@contextlib.contextmanager
def logging_to_stderr(log_format: str, level: str) -> Iterator[None]:
    """Everything that is logged, warned of or printed to ``sys.stderr`` inside the block.

    Text printed on a terminal stays as it is: it may be a progress bar.

    Args:
        log_format: one of ``FORMATS``.
        level: one of ``LEVELS``, of our own loggers; of others warnings are the least.
    """
    stderr, descriptor = sys.stderr, sys.__stderr__.fileno() if sys.__stderr__ else 2
    handler = LineHandler(descriptor)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    root = logging.getLogger()
    levels = log.level, root.level
    root.addHandler(handler)
    log.setLevel(level.upper())
    root.setLevel(max(log.level, logging.WARNING))
    logging.captureWarnings(True)
    if log_format == "json" or not stderr.isatty():
        sys.stderr = _Printed(descriptor)
    try:
        yield
    finally:
        sys.stderr = stderr
        logging.captureWarnings(False)
        root.removeHandler(handler)
        log.setLevel(levels[0])
        root.setLevel(levels[1])
        handler.close()


class LineHandler(logging.Handler):
    """Writes records to a file descriptor from a thread; drops what does not fit its queue."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(_MOST_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._dropped += 1  # callers hold the handler's lock

    def close(self) -> None:
        """Write what waits, for a bounded time."""
        deadline = time.monotonic() + _LAST_SECONDS
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=_LAST_SECONDS)
            self._thread.join(deadline - time.monotonic())
        super().close()

    def _write_all(self) -> None:
        while (record := self._waiting.get()) is not None:
            self._write(record)
            if self._waiting.empty():
                self._tell_of_dropped()
        self._tell_of_dropped()

    def _tell_of_dropped(self) -> None:
        if self._dropped:
            with self.lock or contextlib.nullcontext():
                dropped, self._dropped = self._dropped, 0
            message = "%d lines were dropped: nobody read the log fast enough"
            name, level = log.name, logging.WARNING
            self._write(log.makeRecord(name, level, __file__, 0, message, (dropped,), None))

    def _write(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        except Exception as error:  # arguments that do not fit their message
            line = f"{record.name}: {record.msg!r} cannot be formatted: {error!r}\n".encode()
        while line:
            try:
                line = line[write(self._descriptor, line) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError:
                return  # the reader is gone


class _Text(logging.Formatter):
    """``TIME LEVEL LOGGER: MESSAGE``, further lines indented; fields as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        message, fields = record.getMessage(), _fields(record)
        if fields:
            message = " ".join(f"{name}={_plain(value)}" for name, value in fields.items())
        line = f"{_time(record)} {record.levelname} {record.name}: {message}"
        if record.exc_info:
            line = f"{line}\n{_exception(record)}"
        return line.rstrip("\n").replace("\n", "\n  ")


class _Json(logging.Formatter):
    """An object a line; ASCII only, so that no character ends a line or moves a cursor."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        said = _fields(record) or {"message": record.getMessage()}
        if record.exc_info:
            said = said | {"exception": _exception(record)}
        return json.dumps(line | said)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _exception(record: logging.LogRecord) -> str:
    return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""


class _Printed(io.TextIOBase):
    """``sys.stderr`` whose lines are log records."""

    encoding = "utf-8"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = ""
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return where programs that we start write to."""
        return self._descriptor

    def write(self, text: str) -> int:
        """Log the lines that are whole."""
        with self._lock:
            *lines, self._rest = re.split(r"[\r\n]+", self._rest + text)
        for line in filter(None, lines):
            said = line.removeprefix("detinfer: ")
            level = logging.WARNING if said.startswith("warning: ") else logging.INFO
            log.log(level, "%s", said.removeprefix("warning: "))
        return len(text)
