"""API keys: a bearer key guards every route except a stated public list."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from detinfer.server.errors import Failure

PUBLIC_PATHS = frozenset({"/health", "/ready"})


class ApiKeyMiddleware:
    """Refuse requests without one of ``keys``; with no keys everything is open."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on."""
        guarded = scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS
        if guarded and self._digests:
            key = _bearer_key(scope)
            if key is None or not self._known(key):
                await _refusal(key).response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _known(self, key: bytes) -> bool:
        # Digests of equal length, and no early exit: the time taken tells nothing about the keys.
        given = sha256(key).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)


def _bearer_key(scope: Scope) -> bytes | None:
    """The key of an ``Authorization: Bearer`` header; an empty one counts as none."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return key.strip() or None if scheme.lower() == b"bearer" else None
    return None


def _refusal(key: bytes | None) -> Failure:
    problem = "no API key was given" if key is None else "the API key is not known"
    return Failure(
        401,
        f"Authorization: {problem}, expected 'Bearer KEY'",
        "authentication_error",
        code="missing_api_key" if key is None else "invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )
