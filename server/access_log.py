"""The access log: a line of JSON for each request, without prompts, keys or query strings."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detinfer.server.observation import Generation

log = logging.getLogger("detinfer.access")

_MAX_PATH = 256


def install_access_log() -> None:
    """Write the log to stderr; without this, it goes where the logger's parents send it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def log_request(
    *,
    request_id: str,
    method: str | None,
    path: str | None,
    status: int,
    seconds: float,
    client_disconnected: bool = False,
    generations: Sequence[Generation] = (),
) -> None:
    """Write one line.

    Args:
        request_id: what the answer's ``x-request-id`` says.
        method: None if no HTTP request could be read.
        path: likewise.
        status: 499 if the client went away before an answer began.
        seconds: from the request's head to the end of its answer.
        client_disconnected: whether it went away before the end.
        generations: what the engine did for it; several are joined as in ``x-detinfer-digest``.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    line: dict[str, object] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": request_id,
        "method": method,
        "path": path if path is None else path[:_MAX_PATH],
        "status": status,
        "duration_ms": round(seconds * 1000, 1),
        "client_disconnected": client_disconnected,
    }
    if generations:
        line |= {
            "prompt_tokens": sum(one.prompt_tokens for one in generations),
            "completion_tokens": sum(one.completion_tokens for one in generations),
            "finish_reason": ", ".join(str(one.finish_reason) for one in generations),
            "deterministic": all(one.deterministic for one in generations),
            "digest": ", ".join(one.digest for one in generations if one.digest) or None,
        }
    # ASCII only: no character of a path can end a line or move a terminal's cursor.
    log.info("%s", json.dumps(line))
