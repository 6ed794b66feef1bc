"""A model's step: a puzzle's bits are its own, and what cannot be stepped is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recursive_models import CONFIGS, boards_of, weights_of

from detinfer.errors import ConfigError, ModelLoadError
from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.model import NotFiniteError, RecursiveModel
from detinfer.recursive.weights import save_weights
from detinfer.testing import bits

UNITS = CONFIGS["units"]


def made(config=UNITS, **options):
    return RecursiveModel("test", config, weights_of(config), **options)


def stepped(model, boards, steps=2):
    """Bits of everything a batch gives, by puzzle."""
    y, z = model.start(len(boards))
    for _ in range(steps):
        grids, q = model.step(boards, y, z)
    return [tuple(bits(x[i]).tobytes() for x in (grids, q[:, None], y, z)) for i in range(len(q))]


def differing(model, boards, sizes):
    """Puzzles that give other bits in batches of some size than alone."""
    alone = [stepped(model, boards[i : i + 1])[0] for i in range(len(boards))]
    found = set()
    for size in sizes:
        for start in range(0, len(boards), size):
            for i, got in enumerate(stepped(model, boards[start : start + size]), start):
                if got != alone[i]:
                    found.add(i)
    return found


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_puzzle_has_the_same_bits_in_every_batch(config):
    assert not differing(made(config), boards_of(config, 8), (2, 3, 8))


def test_pytorch_kernels_give_other_bits_in_other_batches():
    config = RecursiveConfig("sudoku9", 10, 81, 96, "units", 6, 256, cycles=1, updates=1)
    assert differing(made(config, deterministic=False), boards_of(config, 8), (2, 3, 8))


def test_order_and_neighbours_do_not_matter():
    model, boards = made(), boards_of(UNITS, 8)
    order = np.random.default_rng(1).permutation(8)
    straight, shuffled = stepped(model, boards), stepped(model, boards[order])
    assert [shuffled[list(order).index(i)] for i in range(8)] == straight


def test_threads_do_not_matter():
    boards = boards_of(UNITS, 8)
    assert stepped(made(threads=1), boards) == stepped(made(), boards)


def test_a_file_is_loaded_and_says_what_it_is(tmp_path):
    weights = weights_of(UNITS)
    save_weights(tmp_path / "trm-test.safetensors", UNITS, weights)
    model = RecursiveModel.load(tmp_path / "trm-test.safetensors")
    assert model.name == "trm-test"
    assert model.config == UNITS
    assert model.system_fingerprint == made().system_fingerprint
    assert made(deterministic=False).system_fingerprint != model.system_fingerprint
    boards = boards_of(UNITS, 3)
    assert stepped(model, boards) == stepped(made(), boards)
    weights["H_init"][0] += 1
    other = RecursiveModel("test", UNITS, weights)
    assert other.system_fingerprint != model.system_fingerprint


def test_a_name_that_does_not_come_with_the_package_is_refused():
    with pytest.raises(ModelLoadError, match="model: got 'trm-chess', expected one of"):
        RecursiveModel.load("trm-chess")


def test_a_nan_is_an_error_that_names_the_puzzle():
    model, boards = made(), boards_of(UNITS, 3)
    y, z = model.start(3)
    z[1, 2, 3] = np.nan
    before = y.copy(), z.copy()
    with pytest.raises(NotFiniteError, match="puzzle 1 of the batch") as caught:
        model.step(boards, y, z)
    assert caught.value.puzzles == [1]
    assert np.array_equal(y, before[0])
    assert np.array_equal(z, before[1], equal_nan=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b, y, z: (b.astype(np.int64), y, z), "boards: got int64"),
        (lambda b, y, z: (b[:, :3], y, z), r"boards: got int8 \(2, 3\), expected contiguous int8"),
        (lambda b, y, z: (b, y[:1], z), r"y: got float32 \(1, 16, 48\)"),
        (lambda b, y, z: (b, y, z.transpose(0, 2, 1)), "z: got float32"),
        (lambda b, y, z: (b + np.int8(5), y, z), r"boards: got ids 5..9, expected 0..4"),
        (lambda b, y, z: (b - np.int8(1), y, z), r"boards: got ids -1..3, expected 0..4"),
    ],
)
def test_what_cannot_be_stepped_is_refused(change, said):
    model = made()
    with pytest.raises(ValueError, match=said):
        model.step(*change(boards_of(UNITS, 2), *model.start(2)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"plan": "best"}, "plan: got 'best', expected one of"),
        ({"threads": 1000}, "threads: got 1000"),
        ({"config": RecursiveConfig("chess", 5, 16, 48, "units", 6, 80)}, "task 'chess'"),
    ],
)
def test_what_cannot_be_loaded_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        made(**options)


def test_a_step_of_nothing_is_nothing():
    model = made()
    y, z = model.start(0)
    grids, q = model.step(np.empty((0, 16), np.int8), y, z)
    assert grids.shape == (0, 16)
    assert q.shape == (0,)
    assert not torch.is_inference(torch.from_numpy(q))
