"""Every page is free, idle under a name, or held; and named pages serve only their own tokens."""

import random

import pytest

from detinfer.config import pages_for
from detinfer.engine.block_manager import BlockManager
from detinfer.engine.prefix_cache import PrefixCache, chain_key, page_tokens, root_key


def test_pages_for():
    sizes = [0, 1, 63, 64, 65, 128, 129]
    assert [pages_for(size) for size in sizes] == [0, 1, 1, 1, 2, 2, 3]


def name(blocks, page, number):
    """Give a page a name of its own."""
    tokens = number.to_bytes(8, "little")
    blocks.cache.add(page, chain_key(b"", tokens), b"", tokens)


def test_random_life():
    evictions = 0
    for seed in range(50):
        rng = random.Random(seed)
        blocks = BlockManager(23)
        held = {}
        for step in range(200):
            action = rng.random()
            if held and action < 0.4:
                blocks.deallocate(owner := rng.choice(list(held)))
                del held[owner]
            elif held and action < 0.6:
                owner = rng.choice(list(held))
                blocks.extend(owner, rng.randint(0, min(3, blocks.num_free)))
                held[owner] = list(blocks.table(owner))
            elif held and action < 0.7 and held[owner := rng.choice(list(held))]:
                name(blocks, held[owner][0], 1000 * seed + step)
            else:
                cached = list(blocks.cache)
                shared = rng.sample(cached, min(len(cached), rng.randint(0, 2)))
                room = blocks.num_free - blocks.num_idle(shared)
                blocks.allocate(f"r{step}", rng.randint(0, room), shared)
                held[f"r{step}"] = list(blocks.table(f"r{step}"))
                assert held[f"r{step}"][: len(shared)] == shared
            blocks.shuffle(rng)
            blocks.check_integrity()
            pages = {page for owned in held.values() for page in owned}
            assert len(pages) == 23 - blocks.num_free
            assert {owner: blocks.table(owner) for owner in blocks.owners()} == held
            alone = [p for owned in held.values() for p in owned if p not in blocks.cache]
            assert len(set(alone)) == len(alone)  # only named pages are shared
        evictions += blocks.evictions
    assert evictions > 100


def test_the_least_recently_used_prefix_goes_first_and_its_end_before_its_beginning():
    blocks = BlockManager(6)
    for owner in ("old", "new"):
        blocks.allocate(owner, 3)
        for page in blocks.table(owner):
            name(blocks, page, page)
    old, new = list(blocks.table("old")), list(blocks.table("new"))
    blocks.deallocate("old")
    blocks.deallocate("new")
    blocks.allocate("x", 4)
    assert blocks.table("x") == [*reversed(old), new[2]]
    assert [page in blocks.cache for page in new] == [True, True, False]
    assert blocks.evictions == 4


def test_a_hash_alone_is_not_believed():
    cache = PrefixCache()
    root = root_key(True, "")
    tokens = page_tokens(list(range(64)), 0)
    key = chain_key(root, tokens)
    cache.add(3, key, root, tokens)
    assert cache.find(key, root, tokens) == 3
    assert cache.find(key, root, page_tokens([0] * 64, 0)) is None
    assert cache.find(key, chain_key(root, tokens), tokens) is None


def test_modes_and_salts_have_chains_of_their_own():
    roots = [root_key(mode, salt) for mode in (True, False) for salt in ("", "a", "b")]
    assert len(set(roots)) == 6


def test_shuffle_moves_where_requests_are_placed():
    placements = set()
    for seed in range(20):
        blocks = BlockManager(16)
        blocks.shuffle(random.Random(seed))
        blocks.allocate("x", 4)
        placements.add(tuple(blocks.table("x")))
    assert len(placements) > 10


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b._free.pop(), "2 free . 0 idle . 1 held by 1 requests, 4 in the pool; missing"),
        (lambda b: b._free.append(0), r"more than once \[0\]"),
        (lambda b: b._owned["x"].append(b._free[0]), r"more than once \[3\]"),
        (lambda b: b._free.append(9), r"out of place \[9\]"),
        (lambda b: b._idle.update({b._free.pop(): None}), r"out of place \[1\]"),
        (lambda b: b._holders.update([0]), r"holders miscounted \[0\]"),
        (lambda b: name(b, b._free[0], 1), r"out of place \[3\]"),
    ],
)
def test_lost_and_doubled_pages_are_found(damage, message):
    blocks = BlockManager(4)
    blocks.allocate("x", 1)
    damage(blocks)
    with pytest.raises(RuntimeError, match=message):
        blocks.check_integrity()


def test_owning_twice_and_freeing_a_stranger_cannot_pass():
    blocks = BlockManager(4)
    blocks.allocate("x", 1)
    with pytest.raises(AssertionError, match="already owns"):
        blocks.allocate("x", 1)
    with pytest.raises(AssertionError, match="4 pages wanted, 3 free"):
        blocks.allocate("y", 4)
    with pytest.raises(AssertionError, match="page 2 is not cached"):
        blocks.allocate("z", 0, [2])
    with pytest.raises(KeyError):
        blocks.deallocate("nobody")
