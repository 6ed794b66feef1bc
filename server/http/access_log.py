"""The access log: a line for each request, without prompts, keys or query strings."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detinfer.server.http.exchange import Generation

log = logging.getLogger("detinfer.access")

_MAX_PATH = 256
# What probes and scrapers ask for every few seconds, and what it is no news that they are answered.
_PROBED = ("/health", "/ready", "/health_generate", "/metrics")
_EXPECTED = (200, 503)


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
    """Write one line, at level info; of a probe that went as probes go at level debug.

    Args:
        request_id: what the answer's ``x-request-id`` says.
        method: None if no HTTP request could be read.
        path: likewise.
        status: 499 if the client went away before an answer began.
        seconds: from the request's head to the end of its answer.
        client_disconnected: whether it went away before the end.
        generations: what the engine did for it; several are joined as in ``x-detinfer-digest``.
    """
    probe = path in _PROBED and status in _EXPECTED
    level = logging.DEBUG if probe else logging.INFO
    if not log.isEnabledFor(level):
        return
    line: dict[str, object] = {
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
    log.log(level, "request", extra={"fields": line})
