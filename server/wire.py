"""Bytes on the wire: JSON without spaces, UTF-8."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)

to_json = _encoder.encode


def to_json_bytes(value: object) -> bytes:
    """Encode ``value``; what UTF-8 cannot carry (a lone surrogate) becomes a question mark."""
    return to_json(value).encode("utf-8", "replace")


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A complete JSON answer."""
    return Response(to_json_bytes(value), status, headers, media_type="application/json")
