from __future__ import annotations

import json
import logging
import os
import sys
import threading

import pytest

from detinfer import logs


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def _all_of(reader: int) -> list[str]:
    with os.fdopen(os.dup(reader)) as file:
        return file.read().splitlines()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_pipe_costs_lines_that_are_counted_and_no_time(pipe, blocking):
    reader, writer = pipe
    os.set_blocking(writer, blocking)
    handler = logs.LineHandler(writer)
    handler.setFormatter(logs._Text())
    count = 30_000

    def log_much() -> None:
        for number in range(count):
            handler.handle(logging.LogRecord("x", 20, "", 0, "line %d", (number,), None))

    thread = threading.Thread(target=log_much, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()  # with nobody reading
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(_all_of(reader)))
    reading.start()
    handler.close()
    os.close(writer)
    reading.join(60)
    written = [line for line in lines if " INFO x: line " in line]
    [lost] = [line for line in lines if " lines were dropped" in line]
    assert len(written) >= logs._MOST_WAITING
    assert len(written) + int(lost.split("detinfer: ")[1].split()[0]) == count


def _logged(pipe, log_format: str, record: logging.LogRecord) -> str:
    reader, writer = pipe
    handler = logs.LineHandler(writer)
    handler.setFormatter(logs._Json() if log_format == "json" else logs._Text())
    handler.handle(record)
    handler.close()
    os.close(writer)
    return "\n".join(_all_of(reader))


def _record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("detinfer.x", logging.INFO, "", 0, message, args, None)
    if fields:
        record.fields = fields
    return record


def test_fields_are_an_object_or_pairs_that_no_value_can_break(pipe):
    fields = {"path": '/a b="c"\n\x1b[1m\u2028', "status": 200, "digest": None, "ok": "a/c.d"}
    text = _logged(pipe, "text", _record("request", **fields))
    assert text.endswith(
        ' INFO detinfer.x: path="/a b=\\"c\\"\\n\\u001b[1m\\u2028" status=200 digest=null ok=a/c.d'
    )


def test_an_exception_is_a_field_of_its_line(pipe):
    try:
        raise KeyError("x")
    except KeyError as error:
        record = _record("it %s", "broke")
        record.exc_info = (type(error), error, error.__traceback__)
    line = json.loads(_logged(pipe, "json", record))
    assert (line["level"], line["logger"], line["message"]) == ("info", "detinfer.x", "it broke")
    assert line["exception"].endswith("KeyError: 'x'")


def test_a_record_that_cannot_be_formatted_ends_nothing(pipe):
    line = _logged(pipe, "text", _record("%d", "seven"))
    assert line.startswith("detinfer.x: '%d' cannot be formatted: TypeError(")


def test_what_is_printed_is_logged_by_whole_lines(caplog):
    caplog.set_level(logging.INFO, "detinfer")
    printed = logs._Printed(2)
    for text in ("detinfer: on", "e\n10 %\r20 %\r", "\ndetinfer: warning: w\n", "not yet"):
        print(text, end="", file=printed)
    assert [one.getMessage() for one in caplog.records] == ["one", "10 %", "20 %", "w"]
    assert [one.levelname for one in caplog.records] == ["INFO", "INFO", "INFO", "WARNING"]
    assert (printed.fileno(), printed.isatty()) == (2, False)


def test_after_the_block_logging_is_as_it_was(monkeypatch, pipe):
    root = logging.getLogger()
    with os.fdopen(pipe[1], "w") as stderr:
        monkeypatch.setattr(sys, "__stderr__", stderr)
        before = (logs.log.level, root.level, list(root.handlers), sys.stderr)
        with logs.logging_to_stderr("json", "debug"):
            assert logs.log.level == logging.DEBUG
            assert len(root.handlers) == len(before[2]) + 1
        assert (logs.log.level, root.level, root.handlers, sys.stderr) == before
