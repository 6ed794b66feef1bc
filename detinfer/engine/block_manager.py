"""Which request owns which pages of the KV cache."""

from __future__ import annotations

import itertools
import random

import numpy as np

from detinfer.config import PAGE_SIZE
from detinfer.engine.batch import IntArray


class BlockManager:
    """Hands out pages of ``PAGE_SIZE`` tokens from one pool.

    Which page a request gets is free: the arithmetic contract lets no result depend on it.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: the last freed is the warmest
        self._owned: dict[str, list[int]] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    @staticmethod
    def pages_for(num_tokens: int) -> int:
        """Pages that hold ``num_tokens`` tokens."""
        return -(-num_tokens // PAGE_SIZE)

    def allocate(self, owner: str, count: int) -> IntArray:
        """Gives ``count`` pages to ``owner``, which must own none; the caller checked ``num_free``.

        Returns:
            Page ids in order of position. [count] int32
        """
        assert owner not in self._owned, f"{owner} already owns pages"
        assert count <= len(self._free), f"{count} pages wanted, {len(self._free)} free"
        pages = [self._free.pop() for _ in range(count)]
        self._owned[owner] = pages
        return np.array(pages, dtype=np.int32)

    def deallocate(self, owner: str) -> None:
        """Takes back all pages of ``owner``."""
        self._free.extend(reversed(self._owned.pop(owner)))

    def shuffle(self, rng: random.Random | np.random.Generator) -> None:
        """Permutes the free pages, so that a check can vary where requests are placed."""
        rng.shuffle(self._free)

    def owners(self) -> list[str]:
        """Everyone who owns pages, longest-standing first."""
        return list(self._owned)

    def check_integrity(self) -> None:
        """Accounts for every page.

        Raises:
            RuntimeError: with the numbers, if a page is missing, owned twice or out of range.
        """
        owned = [page for pages in self._owned.values() for page in pages]
        everything = sorted(self._free + owned)
        if everything == list(range(self.num_pages)):
            return
        distinct = dict.fromkeys(everything)
        missing = [page for page in range(self.num_pages) if page not in distinct]
        repeated = [a for a, b in itertools.pairwise(everything) if a == b]
        raise RuntimeError(
            f"KV pages do not add up: {len(self._free)} free + {len(owned)} owned by "
            f"{len(self._owned)} requests, {self.num_pages} in the pool; "
            f"missing {missing[:8]}, more than once {repeated[:8]}"
        )
