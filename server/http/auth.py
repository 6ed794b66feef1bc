"""API keys: a bearer key guards every route except a stated public list of what may be read."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from detinfer.server.errors import Failure

PUBLIC_PATHS = frozenset({"/health", "/ready"})


class ApiKeyMiddleware:
    """Refuse requests without one of ``keys``; with no keys everything is open.

    Puts ``cache_salt`` into the request's state: requests of one salt may share the prefix cache.

    Args:
        app: what is guarded.
        keys: those that are known.
        share_prefix_cache: whether all keys have one salt.
        public: what may be read without a key beside ``PUBLIC_PATHS``.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        share_prefix_cache: bool,
        public: Collection[str] = (),
    ) -> None:
        self.app = app
        self._public = PUBLIC_PATHS.union(public)
        self._digests = [sha256(key.encode()).digest() for key in keys]
        self._share_prefix_cache = share_prefix_cache

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on."""
        if scope["type"] == "http" and self._digests and not self._is_public(scope):
            key = _bearer_key(scope)
            place = None if key is None else self._place(key)
            if place is None:
                await _refusal(key).response()(scope, receive, send)
                return
            if not self._share_prefix_cache:
                scope.setdefault("state", {})["cache_salt"] = f"key {place}"
        await self.app(scope, receive, send)

    def _is_public(self, scope: Scope) -> bool:
        return scope["method"] in ("GET", "HEAD") and scope["path"] in self._public

    def _place(self, key: bytes) -> int | None:
        # Digests of equal length, and no early exit: the time taken tells nothing about the keys.
        given = sha256(key).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return matches.index(True) if any(matches) else None


def _bearer_key(scope: Scope) -> bytes | None:
    """Return the key of an ``Authorization: Bearer`` header; an empty one counts as none."""
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
