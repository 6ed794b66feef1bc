"""Small recursive models of every mixer, with random weights, and the reference's view of them."""

from __future__ import annotations

import numpy as np

from detinfer.kernels.reference_recursive import Model
from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.network import rope_table
from detinfer.recursive.tasks import TASKS
from detinfer.testing import rounded_normal, to_torch

CONFIGS = {
    "units": RecursiveConfig("sudoku4", 5, 16, 48, "units", 6, 80),
    "units, cut chains": RecursiveConfig("sudoku4", 5, 16, 36, "units", 3, 128),
    "units of two": RecursiveConfig("maze", 5, 144, 32, "units", 4, 48, cycles=1, updates=1),
    "attention": RecursiveConfig("sudoku9", 10, 81, 40, "attention", 2, 64, cycles=1, updates=1),
    "attention with a prefix": RecursiveConfig(
        "sudoku4", 5, 16, 32, "attention", 2, 40, prefix=3, verdicts=2
    ),
    "mlp": RecursiveConfig("sudoku4", 5, 16, 32, "mlp", 0, 64, mixed=24, prefix=2, verdicts=2),
}


def weights_of(config, seed=1, scale=0.3):
    """Normal random weights of a shape, the same on every CPU, which PyTorch's are not."""
    rng = np.random.default_rng(seed)
    return {
        name: to_torch(rounded_normal(rng, shape, scale=scale))
        for name, shape in config.shapes().items()
    }


def boards_of(config, count, seed=0):
    """Random token ids. [count, cells] int8"""
    ids = np.random.default_rng(seed).integers(0, config.vocab, (count, config.cells))
    return ids.astype(np.int8)


def reference_model(config, weights):
    """The NumPy model of the same weights."""
    table = rope_table(config) if config.mixer == "attention" else None
    return Model(
        {name: weight.numpy() for name, weight in weights.items()},
        config.mixer,
        config.heads,
        config.prefix,
        config.cycles,
        config.updates,
        TASKS[config.task].units if config.mixer == "units" else None,
        table and (table.cos.numpy(), table.sin.numpy()),
    )
