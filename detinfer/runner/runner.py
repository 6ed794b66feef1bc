"""What every runner is: a model patched in place, its page pool, and two plans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from detinfer import ops
from detinfer.batch import Batch
from detinfer.config import ResolvedConfig, longest_sequence
from detinfer.environment import check_environment
from detinfer.errors import UnsupportedModelError
from detinfer.models.attention import AttentionCall
from detinfer.models.audit import audit_model
from detinfer.models.patches import PatchReport, patch_model
from detinfer.runner.fingerprint import make_fingerprint
from detinfer.runner.llama_pattern import PatternMismatch, require
from detinfer.runner.loading import Source, eos_token_ids, max_model_len, num_pages, read_source
from detinfer.runner.plans import plans_agree


class Runner(ABC):
    """Loads a model by a profile, and sees at load what it may promise.

    Args:
        config: see ``ResolvedConfig``.
        source: the model, if it is not to be read from files.

    Raises:
        ConfigError: a setting, the environment or the machine cannot work.
        ModelLoadError: the model cannot be found or read.
        UnsupportedModelError: the model's bits cannot be guaranteed.

    Attributes:
        plan: ``fused`` where the whole step is one call, else ``modules``.
        num_pages: pages of 64 tokens in the pool.
        kv_cache_dtype: what they hold.
        fingerprint: what the bits depend on.
        hidden_size: numbers of a final hidden state.
        hidden: final hidden states, after the model's last norm, of the ``hidden_rows`` of the last
            batch that had some; valid until the next call. [H, hidden_size] float32
    """

    contract: ClassVar[str]
    profile: ops.Profile
    cache: Any
    hidden: Tensor

    def __init__(self, config: ResolvedConfig, source: Source | None = None) -> None:
        check_environment()
        self._settle(config)
        source = source or read_source(config.model, config.weights, config.quantize)
        self.tokenizer, self.model_name = source.tokenizer, source.name
        self.generation_defaults = source.generation_defaults
        self.torch_dtype = source.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
        self.dtype = str(self.torch_dtype).removeprefix("torch.")
        same = config.kv_cache_dtype == "auto"
        self.kv_cache_dtype = self.dtype if same else config.kv_cache_dtype
        self.model = source.model
        text_config = self.model.config.get_text_config()
        self.vocab_size: int = text_config.vocab_size
        self.hidden_size: int = self.model.get_output_embeddings().in_features
        self.max_model_len = max_model_len(config.max_model_len, text_config)
        self.eos_token_ids = eos_token_ids(self.model)
        self._allow_fast = config.allow_fast
        self._fused: Any = None
        with ops.use(self.profile):
            report = patch_model(
                self.model,
                self.torch_dtype,
                self.max_model_len,
                config.allow_fast,
                source.packed,
            )
            kept = getattr(torch, self.kv_cache_dtype)
            page = sum(ops.page_bytes(spec, kept) for spec in report.cache_specs)
            self.num_pages = num_pages(config.kv_cache_memory or self._free_memory(), page)
            self._allocate(report)
            # No profile's auto: the fingerprints of old have no word of the cache.
            rounded = ", KV cache bfloat16" if config.kv_cache_dtype == "bfloat16" else ""
            self.fingerprint = make_fingerprint(
                source.parts,
                dtype=self.dtype + rounded,
                rope=report.rope,
                length=longest_sequence(self.max_model_len, self.num_pages),
                contract=self.contract,
                **self._own_parts(),
            )
            audit_model(self.model, self.vocab_size, self)
            if config.plan != "modules":
                self._fused = self._fuse(report.calls, required=config.plan == "fused")
        self.plan = "modules" if self._fused is None else "fused"

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Logits of ``batch.logit_rows``, valid until the next call. [L, V] float32.

        ``hidden`` then has the states of ``batch.hidden_rows``.
        """

    @abstractmethod
    def _settle(self, config: ResolvedConfig) -> None:
        """Decide where to compute; the first thing that is done."""

    @abstractmethod
    def _allocate(self, report: PatchReport) -> None:
        """Make the page pool."""

    @abstractmethod
    def _fused_plan(self, calls: list[AttentionCall]) -> Any:
        """Make the plan of a whole step, or raise ``PatternMismatch``."""

    @abstractmethod
    def _run_modules(self, batch: Batch) -> Tensor:
        """Logits by the model's own modules."""

    @abstractmethod
    def _run_fused(self, fused: Any, batch: Batch) -> Tensor:
        """Logits by the fused plan."""

    def _free_memory(self) -> int:
        """Return bytes for the pool where no setting says; on a CPU one always does."""
        return 0

    def _own_parts(self) -> dict[str, str]:
        """Return what the fingerprint has of this profile alone."""
        return {}

    def _fuse(self, calls: list[AttentionCall], required: bool) -> Any:
        """Return the fused plan, if the model is its pattern and both plans agree bit for bit."""
        try:
            fused = self._fused_plan(calls)
            with torch.inference_mode():
                agree = plans_agree(
                    self._run_modules, lambda batch: self._run_fused(fused, batch), self.vocab_size
                )
            require(agree, "its bits differ from the modules' on a small batch")
        except PatternMismatch as mismatch:
            if required:
                raise UnsupportedModelError(
                    f"plan fused: {type(self.model).__name__}: {mismatch}"
                ) from None
            return None
        return fused
