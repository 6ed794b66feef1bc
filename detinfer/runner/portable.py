"""The runner of profile ``portable``: one model on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from detinfer import ops
from detinfer.batch import Batch
from detinfer.config import ResolvedConfig
from detinfer.kernels.cpu.jit import numba
from detinfer.machine import cpu_threads
from detinfer.models.attention import AttentionCall
from detinfer.models.context import ForwardContext
from detinfer.models.patches import PatchReport
from detinfer.runner.fingerprint import PORTABLE_CONTRACT
from detinfer.runner.llama_pattern import require
from detinfer.runner.plans import run_modules
from detinfer.runner.portable_fused import FusedStep
from detinfer.runner.runner import Runner


class ModelRunner(Runner):
    """One model on the CPU, and the page pool it attends over."""

    contract = PORTABLE_CONTRACT
    profile = ops.PORTABLE

    def forward(self, batch: Batch) -> Tensor:
        """Logits of ``batch.logit_rows``, valid until the next call. [L, V] float32."""
        numba.set_num_threads(self.threads)  # the setting is per thread
        if self._fused is None or not batch.deterministic:
            return self._run_modules(batch)
        return self._run_fused(self._fused, batch)

    def _settle(self, config: ResolvedConfig) -> None:
        self.threads = cpu_threads(config.threads)
        numba.set_num_threads(self.threads)

    def _allocate(self, report: PatchReport) -> None:
        kept = getattr(torch, self.kv_cache_dtype)
        self.cache = ops.KVCache(report.cache_specs, self.num_pages, self.torch_dtype, kept)
        self._logits = torch.empty(0, self.vocab_size)

    def _fused_plan(self, calls: list[AttentionCall]) -> FusedStep:
        only = f"dtype {self.dtype}: only float32 activations are fused"
        require(self.torch_dtype == torch.float32, only)
        return FusedStep(self.model, calls, self.cache)

    def _run_modules(self, batch: Batch) -> Tensor:
        if not batch.deterministic:
            assert self._allow_fast, "a fast step, and no weights for it"  # requests are refused
            torch.set_num_threads(self.threads)  # the engine's step puts back what was
        context = ForwardContext(_tensors(batch), self.cache, batch.deterministic)
        logits, hidden = run_modules(self.model, batch, context)
        if hidden is not None:
            self.hidden = hidden
        return logits

    def _run_fused(self, fused: FusedStep, batch: Batch) -> Tensor:
        rows = batch.logit_rows.size
        if self._logits.shape[0] < rows:
            self._logits = torch.empty(rows, self.vocab_size)
        out = self._logits[:rows]
        hidden = fused.forward(
            batch.input_ids, _tensors(batch), batch.logit_rows, out.numpy(), batch.hidden_rows
        )
        if len(hidden):
            self.hidden = torch.from_numpy(hidden)
        return out


def _tensors(batch: Batch) -> ops.BatchTensors:
    return ops.BatchTensors(batch.positions, batch.query_start, batch.block_tables)
