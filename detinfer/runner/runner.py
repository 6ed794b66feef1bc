"""What the engine needs of a model runner, and which one a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from detinfer import ops
from detinfer.batch import Batch
from detinfer.config import ResolvedConfig

if TYPE_CHECKING:
    from detinfer.runner.fingerprint import Fingerprint


class Runner(Protocol):
    """``ModelRunner``, ``NativeRunner``, or a fake in tests."""

    vocab_size: int
    max_model_len: int
    num_pages: int
    eos_token_ids: frozenset[int]
    tokenizer: Any
    model_name: str
    plan: str
    dtype: str
    fingerprint: Fingerprint
    profile: ops.Profile
    generation_defaults: dict[str, Any]

    def forward(self, batch: Batch) -> Tensor:
        """Logits of ``batch.logit_rows``, valid until the next call. [L, V] float32."""


def make_runner(config: ResolvedConfig) -> Runner:
    """Load the model."""
    if config.profile == "native":
        from detinfer.runner.native import NativeRunner

        return NativeRunner(config)
    from detinfer.runner.portable import ModelRunner

    return ModelRunner(config)
