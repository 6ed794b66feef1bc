"""Which requests hold which pages of the KV cache, and which pages are kept for a later prefix."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from detinfer.engine.prefix_cache import PrefixCache


class BlockManager:
    """Hands out pages of ``PAGE_SIZE`` tokens from one pool.

    A page is free, held by one or more requests, or idle: held by none but named in the prefix
    cache, and given away when no free page is left, least recently used first. Which page a request
    gets is free: the arithmetic contract lets no result depend on it.

    Attributes:
        cache: names of full pages.
        evictions: idle pages given away so far.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.cache = PrefixCache()
        self.evictions = 0
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: the last freed is the warmest
        self._idle: dict[int, None] = {}  # in order of last use
        self._holders: Counter[int] = Counter()
        self._owned: dict[str, list[int]] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free) + len(self._idle)

    def num_idle(self, pages: Sequence[int]) -> int:
        """Return how many of these nobody holds."""
        return sum(page in self._idle for page in pages)

    def allocate(self, owner: str, count: int, shared: Sequence[int] = ()) -> None:
        """Give ``owner``, which must own none, ``shared`` cached pages and ``count`` more.

        The caller has checked ``num_free``.
        """
        assert owner not in self._owned, f"{owner} already owns pages"
        self._owned[owner] = []
        for page in shared:
            assert page in self.cache, f"page {page} is not cached"
            self._idle.pop(page, None)
            self._hold(owner, page)
        self.extend(owner, count)

    def extend(self, owner: str, count: int) -> None:
        """Give ``owner`` ``count`` more pages; the caller has checked ``num_free``."""
        assert count <= self.num_free, f"{count} pages wanted, {self.num_free} free"
        for _ in range(count):
            self._hold(owner, self._free.pop() if self._free else self._evict())

    def table(self, owner: str) -> list[int]:
        """Return the pages of ``owner``, in order of position."""
        return self._owned[owner]

    def deallocate(self, owner: str) -> None:
        """Take back all pages of ``owner``; named ones stay for a later prefix."""
        # The last page first: a prefix outlives what continued it.
        for page in reversed(self._owned.pop(owner)):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            del self._holders[page]
            if page in self.cache:
                self._idle[page] = None
            else:
                self._free.append(page)

    def rebuild(self, owners: Iterable[str]) -> None:
        """Make the account of all pages anew from those ``owners`` have, in this order."""
        self._owned = {owner: self._owned[owner] for owner in owners}
        self._holders = Counter(page for pages in self._owned.values() for page in pages)
        self.cache.rebuild()
        # Pages on no list come first: nobody knows when they were last used.
        listed = {*self._idle, *self._free}
        lost = (page for page in range(self.num_pages) if page not in listed)
        pages = dict.fromkeys([*lost, *self._idle, *self._free])
        unheld = [page for page in pages if page not in self._holders]
        self._idle = {page: None for page in unheld if page in self.cache}
        self._free = [page for page in unheld if page not in self.cache]

    def forget(self) -> None:
        """Empty the prefix cache but for pages in use."""
        for page in self._idle:
            self.cache.remove(page)
        self._free.extend(self._idle)
        self._idle.clear()

    def shuffle(self, rng: random.Random | np.random.Generator) -> None:
        """Permute the free pages, so that a check can vary where requests are placed.

        Where they come to lie follows from which are free, not from the order they became so.
        """
        self._free.sort(reverse=True)
        rng.shuffle(self._free)

    def next_free(self, count: int) -> list[int]:
        """Return up to ``count`` free pages that no name is kept of, those given out next."""
        return self._free[-count:]

    def order(self) -> None:
        """Put the free pages in the order in which a new manager gives them out."""
        self._free.sort(reverse=True)

    def owners(self) -> list[str]:
        """Everyone who owns pages, longest-standing first."""
        return list(self._owned)

    def check_integrity(self) -> None:
        """Account for every page.

        Raises:
            RuntimeError: with the numbers, if a page is missing, free and held, or miscounted.
        """
        held = Counter(page for pages in self._owned.values() for page in pages)
        everything = Counter([*self._free, *self._idle, *held])
        missing = [page for page in range(self.num_pages) if not everything[page]]
        repeated = [page for page, times in everything.items() if times > 1]
        odd = [page for page in everything if not 0 <= page < self.num_pages]
        odd += [page for page in self._idle if page not in self.cache]
        odd += sorted(set(self._free).intersection(self.cache))
        if missing or repeated or odd or held != self._holders:
            raise RuntimeError(
                f"KV pages do not add up: {len(self._free)} free + {len(self._idle)} idle + "
                f"{len(held)} held by {len(self._owned)} requests, {self.num_pages} in the pool; "
                f"missing {missing[:8]}, more than once {repeated[:8]}, out of place {odd[:8]}, "
                f"holders miscounted {list((held - self._holders) + (self._holders - held))[:8]}"
            )

    def _hold(self, owner: str, page: int) -> None:
        self._holders[page] += 1
        self._owned[owner].append(page)

    def _evict(self) -> int:
        page = next(iter(self._idle))
        del self._idle[page]
        self.cache.remove(page)
        self.evictions += 1
        return page
