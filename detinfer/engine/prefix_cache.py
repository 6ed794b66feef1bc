"""Which pages hold which tokens: full pages under the chain hash of all tokens up to their end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from detinfer.kernels.constants import PAGE_SIZE

_DIGEST_BYTES = 32


class _Entry(NamedTuple):
    key: bytes
    parent: bytes
    tokens: bytes


def root_key(deterministic: bool, salt: str) -> bytes:
    """Return where a chain begins: pages of one mode, or one salt, never serve another."""
    name = "deterministic" if deterministic else "fast"
    return hashlib.blake2b(f"{name}\0{salt}".encode(), digest_size=_DIGEST_BYTES).digest()


def page_tokens(token_ids: Sequence[int], page: int) -> bytes:
    """Return the tokens of a sequence's page, as they are compared."""
    return np.array(token_ids[page * PAGE_SIZE : (page + 1) * PAGE_SIZE], np.int32).tobytes()


def chain_key(parent: bytes, tokens: bytes) -> bytes:
    """Return the key of a page after the one of key ``parent``."""
    return hashlib.blake2b(parent + tokens, digest_size=_DIGEST_BYTES).digest()


class PrefixCache:
    """From chain keys to pages, and back."""

    def __init__(self) -> None:
        self._pages: dict[bytes, int] = {}
        self._entries: dict[int, _Entry] = {}

    def __contains__(self, page: int) -> bool:
        return page in self._entries

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def find(self, key: bytes, parent: bytes, tokens: bytes) -> int | None:
        """Find the page of these tokens after these pages; a hash alone is not believed."""
        page = self._pages.get(key)
        if page is None or self._entries[page] != _Entry(key, parent, tokens):
            return None
        return page

    def add(self, page: int, key: bytes, parent: bytes, tokens: bytes) -> None:
        """Name a page; the first page of a key keeps it."""
        if key not in self._pages and page not in self._entries:
            self._pages[key] = page
            self._entries[page] = _Entry(key, parent, tokens)

    def remove(self, page: int) -> None:
        """Forget a page whose memory is to be used again."""
        del self._pages[self._entries.pop(page).key]

    def rebuild(self) -> None:
        """Find the pages' entries by their keys, and by no others."""
        self._pages = {entry.key: page for page, entry in self._entries.items()}
