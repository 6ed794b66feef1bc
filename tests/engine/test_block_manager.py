"""Every page has one owner or none."""

import random

import pytest

from detinfer.engine.block_manager import BlockManager


def test_pages_for():
    sizes = [0, 1, 63, 64, 65, 128, 129]
    assert [BlockManager.pages_for(size) for size in sizes] == [0, 1, 1, 1, 2, 2, 3]


def test_random_life():
    for seed in range(50):
        rng = random.Random(seed)
        blocks = BlockManager(23)
        held = {}
        for step in range(200):
            if held and rng.random() < 0.5:
                blocks.deallocate(owner := rng.choice(list(held)))
                del held[owner]
            else:
                count = rng.randint(0, blocks.num_free)
                held[f"r{step}"] = blocks.allocate(f"r{step}", count).tolist()
                assert len(held[f"r{step}"]) == count
            blocks.shuffle(rng)
            blocks.check_integrity()
            pages = [page for owned in held.values() for page in owned]
            assert len(set(pages)) == len(pages) == 23 - blocks.num_free
            assert blocks.owners() == list(held)


def test_shuffle_moves_where_requests_are_placed():
    placements = set()
    for seed in range(20):
        blocks = BlockManager(16)
        blocks.shuffle(random.Random(seed))
        placements.add(tuple(blocks.allocate("x", 4)))
    assert len(placements) > 10


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b._free.pop(), "2 free . 1 owned by 1 requests, 4 in the pool; missing .1."),
        (lambda b: b._free.append(0), r"more than once \[0\]"),
        (lambda b: b._owned["x"].append(b._free[0]), r"more than once \[3\]"),
        (lambda b: b._free.append(9), r"4 free . 1 owned by 1 requests, 4 in the pool"),
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
    with pytest.raises(KeyError):
        blocks.deallocate("y")
    blocks.check_integrity()
