"""Bytes on the wire: JSON without spaces, UTF-8."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

# No value of ours holds itself: looking for that would cost every token of a stream.
_encoder = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, separators=(",", ":"), allow_nan=False
)
_NEVER = -9999.0  # OpenAI's own value for the log-probability of what cannot come


def to_json(value: object) -> str:
    """Encode ``value``; -inf, which JSON does not have, as -9999.0.

    Raises:
        ValueError: a NaN or +inf.
    """
    try:
        return _encoder.encode(value)
    except ValueError:  # rare: models that rule tokens out
        return _encoder.encode(_spelled(value))


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(one) for one in value]
    return _NEVER if isinstance(value, float) and value == -math.inf else value


def to_json_bytes(value: object) -> bytes:
    """Encode ``value``; what UTF-8 cannot carry (a lone surrogate) becomes a question mark."""
    return to_json(value).encode("utf-8", "replace")


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a complete JSON answer."""
    return Response(to_json_bytes(value), status, headers, media_type="application/json")
