"""State dicts of the authors' own training (github.com/SamsungSAILMontreal/TinyRecursiveModels).

They hold tensors by the names this package uses too, below prefixes of modules and wrappers. What a
state dict does not say is given: the task's board, and the numbers of recursions.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detinfer.errors import ConfigError
from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.weights import check_weights

PREFIXES = ("_orig_mod.", "module.", "model.", "inner.")
HEAD_DIM, PREFIX = 64, 16
# Buffers that are tables of the code, not of the training.
TABLES = ("rotary_emb.cos_cached", "rotary_emb.sin_cached")
TRAINING_STATE = ("puzzle_emb.local_weights", "puzzle_emb.local_ids")


def load_official(
    path: Path, task: str, cells: int, cycles: int, updates: int
) -> tuple[RecursiveConfig, dict[str, Tensor]]:
    """Read a checkpoint as binary32.

    Args:
        path: what ``torch.save`` wrote of a state dict.
        task, cells: what it was trained on, and the cells of a board.
        cycles, updates: T and n, ``H_cycles`` and ``L_cycles`` of the training.

    Raises:
        ConfigError: it holds code, is no state dict, or not one of this model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path}: not a state dict of tensors ({_line(error)})") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(one, Tensor) for name, one in state.items()
    ):
        raise ConfigError(f"{path}: not a state dict: expected tensors by name")
    weights = {_plain(name): tensor.float() for name, tensor in state.items()}
    for name in (*TABLES, *TRAINING_STATE):
        weights.pop(name, None)
    if "puzzle_emb.weights" in weights:
        puzzles = len(weights["puzzle_emb.weights"])
        if puzzles != 1:
            raise ConfigError(f"{path}: {puzzles} puzzle identifiers, expected a task of one")
    config = _config(path, weights, task, cells, cycles, updates)
    check_weights(path.name, config, weights)
    return config, weights


def _plain(name: str) -> str:
    while (start := next((one for one in PREFIXES if name.startswith(one)), None)) is not None:
        name = name[len(start) :]
    return name


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _config(
    path: Path, weights: dict[str, Tensor], task: str, cells: int, cycles: int, updates: int
) -> RecursiveConfig:
    def size(name: str, dimension: int) -> int:
        if name not in weights or weights[name].ndim <= dimension:
            raise ConfigError(f"{path}: tensor {name} is missing or no matrix")
        return int(weights[name].shape[dimension])

    layer = "L_level.layers.0."
    hidden = size("embed_tokens.embedding_weight", 1)
    shape: dict[str, Any] = {"mixer": "attention", "heads": hidden // HEAD_DIM}
    if layer + "mlp_t.down_proj.weight" in weights:
        shape = {"mixer": "mlp", "mixed": size(layer + "mlp_t.down_proj.weight", 1)}
    return RecursiveConfig(
        task,
        vocab=size("embed_tokens.embedding_weight", 0),
        cells=cells,
        hidden=hidden,
        intermediate=size(layer + "mlp.down_proj.weight", 1),
        layers=len({name.split(".")[2] for name in weights if name.startswith("L_level.layers.")}),
        cycles=cycles,
        updates=updates,
        prefix=PREFIX if "puzzle_emb.weights" in weights else 0,
        verdicts=size("q_head.weight", 0),
        **shape,
    )
