"""Files that a check is handed, read whole within a bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detinfer.errors import ConfigError


def read_bounded(path: str, most: int, wrong: Callable[[str], ConfigError]) -> bytes:
    """Return a file's bytes.

    Args:
        path: the file.
        most: bytes that are read.
        wrong: makes the error of what is wrong.

    Raises:
        ConfigError: it cannot be read, or has more bytes.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise wrong(f"cannot be read ({error.strerror})") from None
    if len(data) > most:
        raise wrong(f"more than {most} bytes")
    return data
