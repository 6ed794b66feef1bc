"""The models that come with the package: weights we trained, and what their cards say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detinfer.errors import ModelLoadError

FOLDER = Path(__file__).parent / "trained"


def names() -> list[str]:
    """Return what can be loaded by name, in order."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def path(name: str) -> Path:
    """Return the weights of a shipped model.

    Raises:
        ModelLoadError: there is none of that name.
    """
    known = names()
    if name not in known:
        there = ", ".join(known) or "none, this copy of detinfer has no weights"
        raise ModelLoadError(f"model: got {name!r}, expected one of: {there}")
    return FOLDER / f"{name}.safetensors"


def card(name: str) -> dict[str, Any]:
    """Return how a shipped model was trained and what it was measured to do.

    Raises:
        ModelLoadError: there is no model of that name, or its card is missing.
    """
    found = path(name).with_suffix(".json")
    if not found.exists():
        raise ModelLoadError(f"{found.name}: missing beside the weights, expected the model's card")
    told: dict[str, Any] = json.loads(found.read_text())
    return told
