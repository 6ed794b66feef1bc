"""Weights of a recursive model in a safetensors file that says what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from detinfer.errors import ConfigError
from detinfer.recursive.config import RecursiveConfig

_KEY = "recursive_config"


def save_weights(path: Path, config: RecursiveConfig, weights: dict[str, Tensor]) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    tensors = {name: weight.detach().contiguous() for name, weight in weights.items()}
    save_file(tensors, part, {_KEY: json.dumps(asdict(config))})
    part.replace(path)


def load_weights(path: Path) -> tuple[RecursiveConfig, dict[str, Tensor]]:
    """Read a file.

    Raises:
        ConfigError: it is none of ours, or its tensors are not those of its shape.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read as safetensors ({error})") from None
    if text is None:
        raise ConfigError(f"{path}: not the weights of a recursive model (no {_KEY} in its header)")
    try:
        config = RecursiveConfig(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {_KEY}: {error}") from None
    check_weights(path.name, config, weights)
    return config, weights


def check_weights(source: str, config: RecursiveConfig, weights: dict[str, Tensor]) -> None:
    """Refuse tensors that are not those of a shape, or hold a NaN or infinity."""
    shapes = config.shapes()
    for name in sorted(shapes.keys() | weights.keys()):
        if name not in weights:
            raise ConfigError(f"{source}: tensor {name} is missing")
        if name not in shapes:
            raise ConfigError(f"{source}: tensor {name} has no place in the model")
        got, expected = tuple(weights[name].shape), shapes[name]
        if got != expected:
            raise ConfigError(f"{source}: {name} has shape {got}, expected {expected}")
        if not torch.isfinite(weights[name]).all():
            raise ConfigError(f"{source}: {name} holds a NaN or an infinity")


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights by name."""
    hasher = hashlib.sha256()
    for name in sorted(weights):
        hasher.update(name.encode() + weights[name].detach().contiguous().numpy().tobytes())
    return hasher.hexdigest()
