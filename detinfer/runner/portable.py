"""From a ``Batch`` to logits: loads a model, proves at load what it may promise, runs steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from detinfer import ops
from detinfer.batch import Batch
from detinfer.config import ResolvedConfig, longest_sequence
from detinfer.environment import check_environment
from detinfer.errors import UnsupportedModelError
from detinfer.kernels.cpu.jit import numba
from detinfer.machine import cpu_threads
from detinfer.models.audit import audit_model
from detinfer.models.context import ForwardContext
from detinfer.models.patches import patch_model
from detinfer.runner.fingerprint import make_fingerprint
from detinfer.runner.llama_pattern import PatternMismatch, require
from detinfer.runner.loading import (
    eos_token_ids,
    max_model_len,
    num_pages,
    read_source,
)
from detinfer.runner.plans import BITS_DIFFER, plans_agree, run_modules
from detinfer.runner.portable_fused import FusedStep


class ModelRunner:
    """One model on the CPU by the ``portable`` profile, and the page pool it attends over.

    Args:
        config: see ``ResolvedConfig``.

    Raises:
        ConfigError: a setting or the environment cannot work.
        ModelLoadError: the model cannot be found or read.
        UnsupportedModelError: the model's bits cannot be guaranteed.

    Attributes:
        plan: ``fused`` where the whole step is one compiled call, else ``modules``.
        num_pages: pages of 64 tokens in the pool.
        fingerprint: what the bits depend on.
    """

    profile = ops.PORTABLE

    def __init__(self, config: ResolvedConfig) -> None:
        check_environment()
        self.threads = cpu_threads(config.threads)
        numba.set_num_threads(self.threads)
        source = read_source(config.model)
        self.tokenizer, self.model_name = source.tokenizer, source.name
        self.generation_defaults = source.generation_defaults
        self.dtype = config.dtype
        self.torch_dtype = getattr(torch, config.dtype)

        model = source.model
        text_config = model.config.get_text_config()
        self.vocab_size: int = text_config.vocab_size
        self.max_model_len = max_model_len(config.max_model_len, text_config)
        self.eos_token_ids = eos_token_ids(model)
        self._allow_fast = config.allow_fast
        self.model = model
        report = patch_model(model, self.torch_dtype, self.max_model_len, config.allow_fast)
        page = sum(ops.page_bytes(spec, self.torch_dtype) for spec in report.cache_specs)
        self.num_pages = num_pages(config.kv_cache_memory, page)
        self.cache = ops.KVCache(report.cache_specs, self.num_pages, self.torch_dtype)
        self.fingerprint = make_fingerprint(
            source.parts,
            dtype=self.dtype,
            rope=report.rope,
            length=longest_sequence(self.max_model_len, self.num_pages),
        )

        self._logits = torch.empty(0, self.vocab_size)
        self._fused: FusedStep | None = None
        audit_model(model, self.vocab_size, self)
        if config.plan != "modules":
            self._fused = self._fuse(report.calls, required=config.plan == "fused")
        self.plan = "modules" if self._fused is None else "fused"

    def forward(self, batch: Batch) -> Tensor:
        """Logits of ``batch.logit_rows``, valid until the next call. [L, V] float32."""
        numba.set_num_threads(self.threads)  # the setting is per thread
        if self._fused is None or not batch.deterministic:
            return self._run_modules(batch)
        return self._run_fused(self._fused, batch)

    def _run_modules(self, batch: Batch) -> Tensor:
        if not batch.deterministic:
            assert self._allow_fast, "a fast step, and no weights for it"  # requests are refused
            torch.set_num_threads(self.threads)  # the engine's step puts back what was
        context = ForwardContext(_tensors(batch), self.cache, batch.deterministic)
        return run_modules(self.model, batch, context)

    def _run_fused(self, fused: FusedStep, batch: Batch) -> Tensor:
        rows = batch.logit_rows.size
        if self._logits.shape[0] < rows:
            self._logits = torch.empty(rows, self.vocab_size)
        out = self._logits[:rows]
        fused.forward(batch.input_ids, _tensors(batch), batch.logit_rows, out.numpy())
        return out

    def _fuse(self, calls: Any, required: bool) -> FusedStep | None:
        """Return the fused plan, if the model is its pattern and both plans agree bit for bit."""
        try:
            only = f"dtype {self.dtype}: only float32 activations are fused"
            require(self.torch_dtype == torch.float32, only)
            fused = FusedStep(self.model, calls, self.cache)
            run = partial(self._run_fused, fused)
            require(plans_agree(self._run_modules, run, self.vocab_size), BITS_DIFFER)
        except PatternMismatch as mismatch:
            if required:
                raise UnsupportedModelError(
                    f"plan fused: {type(self.model).__name__}: {mismatch}"
                ) from None
            return None
        return fused


def _tensors(batch: Batch) -> ops.BatchTensors:
    return ops.BatchTensors(batch.positions, batch.query_start, batch.block_tables)
