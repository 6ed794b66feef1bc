"""The model runner of profile ``native``: Triton kernels on a GPU, decode steps as CUDA graphs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detinfer import ops
from detinfer.backends.native import NativeCache
from detinfer.backends.native_batch import (
    AttentionShape,
    NativeBatch,
    exact_layout,
    fill,
    work_lists,
)
from detinfer.batch import Batch
from detinfer.config import ResolvedConfig, pages_for
from detinfer.errors import ConfigError
from detinfer.kernels.triton import launch
from detinfer.models.attention import AttentionCall
from detinfer.models.context import ForwardContext
from detinfer.models.patches import PatchReport
from detinfer.runner.fingerprint import NATIVE_CONTRACT
from detinfer.runner.kernel_sources import kernel_sources
from detinfer.runner.llama_pattern import match
from detinfer.runner.loading import Source
from detinfer.runner.native_fused import NativeStep
from detinfer.runner.native_graphs import DecodeGraphs
from detinfer.runner.plans import run_modules
from detinfer.runner.runner import Runner

_FREE_SHARE = 0.9  # of the memory the weights leave, for pages


class NativeRunner(Runner):
    """One model on one GPU by the ``native`` profile, and the page pool it attends over.

    With ``TRITON_INTERPRET=1`` it runs on CPU tensors, kernel by kernel in Triton's interpreter:
    slow, for tests.
    """

    contract = NATIVE_CONTRACT

    _graphs: DecodeGraphs | None = None  # made of the fused plan, once it is trusted

    def __init__(self, config: ResolvedConfig, source: Source | None = None) -> None:
        super().__init__(config, source)
        device = self.profile.device
        if self._fused is not None and device.type == "cuda":
            pages = pages_for(self.max_model_len)
            with ops.use(self.profile):
                self._graphs = DecodeGraphs(
                    self._fused, self._shapes, self._tilings, pages, self.max_model_len, device
                )

    def forward(self, batch: Batch) -> Tensor:
        """Logits of ``batch.logit_rows``, valid until the next call. [L, V] float32, on the device.

        Does not wait for the device.
        """
        if not batch.deterministic:
            assert self._allow_fast, "a fast step, and no weights for it"  # requests are refused
        with ops.use(self.profile), torch.inference_mode():
            if self._fused is None or batch.hidden_rows.size:  # the fused plan gives logits alone
                return self._run_modules(batch)
            if self._graphs is not None and self._graphs.fits(batch):
                return self._graphs.forward(batch)
            return self._run_fused(self._fused, batch)

    def _settle(self, config: ResolvedConfig) -> None:
        self.profile = ops.Profile("native", _device(config))

    def _allocate(self, report: PatchReport) -> None:
        device = self.profile.device
        self.cache = NativeCache(report.cache_specs, self.num_pages, self.torch_dtype, device)
        self._shapes = list(
            dict.fromkeys(
                AttentionShape(c.heads // c.spec.kv_heads, c.window, c.spec.k_dim, c.spec.v_dim)
                for c in report.calls
            )
        )
        self._tilings = [shape.tiling(self.torch_dtype, device) for shape in self._shapes]

    def _fused_plan(self, calls: list[AttentionCall]) -> NativeStep:
        return NativeStep(match(self.model, calls), self.cache)

    def _run_modules(self, batch: Batch) -> Tensor:
        context = ForwardContext(self._on_device(batch), self.cache, batch.deterministic)
        logits, hidden = run_modules(self.model, batch, context, self.profile.device)
        if hidden is not None:
            self.hidden = hidden
        return logits

    def _run_fused(self, step: NativeStep, batch: Batch) -> Tensor:
        return step.forward(self._on_device(batch), batch.deterministic)

    def _on_device(self, batch: Batch) -> NativeBatch:
        work = work_lists(batch, self._shapes, self._tilings)
        layout = exact_layout(batch, work)
        whole = not batch.positions[batch.query_start[:-1]].any()
        longest = int(np.diff(batch.query_start).max()) if whole else 0
        device = self.profile.device
        host = torch.zeros(layout.offsets[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
        fill(host.numpy(), layout, batch, work)
        if device.type != "cuda":
            longest = 0  # no flash attention to run whole prompts with
        buffer = host.to(device, non_blocking=True)
        return NativeBatch(buffer, layout, self._shapes, longest)

    def _free_memory(self) -> int:
        device = self.profile.device
        if device.type == "cpu":
            return 1 << 30
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0] * _FREE_SHARE)

    def _own_parts(self) -> dict[str, str]:
        import triton

        device = self.profile.device
        where = "interpreter" if launch.interpreted() else f"sm_{launch.architecture(device)}"
        return {
            "architecture": where,
            "compiler": f"triton {triton.__version__}",
            "kernel_sources": kernel_sources(),
        }


def _device(config: ResolvedConfig) -> torch.device:
    if launch.interpreted():
        return torch.device("cpu")
    if config.device != "cuda":
        raise ConfigError("numerics: got 'native' with device 'cpu', expected device cuda")
    if torch.version.hip is not None:
        raise ConfigError("device: got 'cuda' on a PyTorch for AMD GPUs, which are not supported")
    if not torch.cuda.is_available():
        build = torch.version.cuda or "cpu"
        raise ConfigError(f"device: got 'cuda', but PyTorch sees no GPU (its build: {build})")
    return torch.device("cuda", torch.cuda.current_device())
