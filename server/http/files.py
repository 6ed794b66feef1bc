"""Files that are sent as they are: read once and found by name alone, never by a path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_TYPES = {  # the system's own table may call a script plain text, which browsers then do not run
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Kept, but asked about each time: another version of the server has others of these names.
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class File:
    """One file.

    Attributes:
        etag: follows from the content.
    """

    body: bytes
    media_type: str
    etag: str

    def response(self, request: Request, policy: str) -> Response:
        """Return it, or 304 to whom has it already.

        Args:
            request: says what its client has.
            policy: the Content-Security-Policy.
        """
        headers = {**_HEADERS, "etag": self.etag, "content-security-policy": policy}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type=self.media_type)


def read_files(paths: Iterable[Path]) -> Mapping[str, File]:
    """Return the files of known types, by their names."""
    return {path.name: _read(path) for path in paths if path.suffix in _TYPES}


def _read(path: Path) -> File:
    body = path.read_bytes()
    return File(body, _TYPES[path.suffix], f'"{sha256(body).hexdigest()[:32]}"')
