"""What the engine needs of a model runner, and which one a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from detinfer import ops
from detinfer.batch import Batch
from detinfer.config import EngineConfig
from detinfer.engine.outputs import EngineInfo

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
    dtype: Any
    fingerprint: Fingerprint
    profile: ops.Profile
    generation_defaults: dict[str, Any]

    def forward(self, batch: Batch) -> Tensor:
        """Logits of ``batch.logit_rows``, valid until the next call. [L, V] float32."""


def make_runner(config: EngineConfig) -> Runner:
    """Loads the model of a resolved configuration."""
    if config.numerics == "native" or config.device == "cuda":
        from detinfer.runner.native import NativeRunner

        return NativeRunner(config)
    from detinfer.runner.portable import ModelRunner

    return ModelRunner(config)


def describe(runner: Runner, config: EngineConfig) -> EngineInfo:
    """What the other side of the process boundary is told of a loaded engine."""
    assert config.max_num_seqs is not None
    parts = dict(runner.fingerprint.parts)
    return EngineInfo(
        model_name=runner.model_name,
        max_model_len=runner.max_model_len,
        vocab_size=runner.vocab_size,
        eos_token_ids=tuple(sorted(runner.eos_token_ids)),
        num_pages=runner.num_pages,
        max_num_seqs=config.max_num_seqs,
        allow_fast=config.allow_fast,
        plan=runner.plan,
        dtype=str(runner.dtype).removeprefix("torch."),
        numerics=parts.get("profile", "portable"),
        fingerprint=parts,
        system_fingerprint=runner.fingerprint.system_fingerprint,
        generation_defaults=runner.generation_defaults,
    )
