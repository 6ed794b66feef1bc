"""A profile's side of a step: a model in memory, and from a batch to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detinfer.config import ResolvedConfig
    from detinfer.runner.runner import Runner


def make_runner(config: ResolvedConfig) -> Runner:
    """Load the model."""
    if config.profile == "native":
        from detinfer.runner.native import NativeRunner

        return NativeRunner(config)
    from detinfer.runner.portable import ModelRunner

    return ModelRunner(config)
