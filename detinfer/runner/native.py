"""The model runner of profile ``native``: Triton kernels on a GPU, decode steps as CUDA graphs."""

from __future__ import annotations

from functools import partial
from typing import Any

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
from detinfer.config import ResolvedConfig, longest_sequence, pages_for
from detinfer.environment import check_environment
from detinfer.errors import ConfigError, UnsupportedModelError
from detinfer.kernels.triton import launch
from detinfer.models.audit import audit_model
from detinfer.models.context import ForwardContext
from detinfer.models.patches import patch_model
from detinfer.runner.fingerprint import NATIVE_CONTRACT, make_fingerprint
from detinfer.runner.kernel_sources import kernel_sources
from detinfer.runner.llama_pattern import PatternMismatch, match, require
from detinfer.runner.loading import (
    Source,
    eos_token_ids,
    max_model_len,
    num_pages,
    read_source,
)
from detinfer.runner.native_fused import NativeStep
from detinfer.runner.native_graphs import DecodeGraphs
from detinfer.runner.plans import BITS_DIFFER, plans_agree, run_modules

_FREE_SHARE = 0.9  # of the memory the weights leave, for pages


class NativeRunner:
    """One model on one GPU by the ``native`` profile, and the page pool it attends over.

    With ``TRITON_INTERPRET=1`` it runs on CPU tensors, kernel by kernel in Triton's interpreter:
    slow, for tests.

    Args:
        config: see ``ResolvedConfig``.
        source: the model, if it is not to be read from files.

    Raises:
        ConfigError: a setting or the machine cannot work.
        ModelLoadError: the model cannot be found or read.
        UnsupportedModelError: the model's bits cannot be guaranteed.

    Attributes:
        plan: ``fused`` where a step is a fixed sequence of launches, else ``modules``.
    """

    def __init__(self, config: ResolvedConfig, source: Source | None = None) -> None:
        check_environment()  # tokens are chosen on the host
        device = _device(config)
        self.profile = ops.Profile("native", device)
        source = source or read_source(config.model)
        self.tokenizer, self.model_name = source.tokenizer, source.name
        self.generation_defaults = source.generation_defaults
        self.torch_dtype = source.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
        self.dtype = str(self.torch_dtype).removeprefix("torch.")
        self.model = model = source.model
        text_config = model.config.get_text_config()
        self.vocab_size: int = text_config.vocab_size
        self.max_model_len = max_model_len(config.max_model_len, text_config)
        self.eos_token_ids = eos_token_ids(model)
        self._allow_fast = config.allow_fast

        with ops.use(self.profile):
            report = patch_model(model, self.torch_dtype, self.max_model_len, config.allow_fast)
            page = sum(ops.page_bytes(spec, self.torch_dtype) for spec in report.cache_specs)
            self.num_pages = num_pages(config.kv_cache_memory or _free_memory(device), page)
            self.cache = NativeCache(report.cache_specs, self.num_pages, self.torch_dtype, device)
            self._shapes = list(
                dict.fromkeys(
                    AttentionShape(c.heads // c.spec.kv_heads, c.window, c.spec.k_dim, c.spec.v_dim)
                    for c in report.calls
                )
            )
            self._tilings = [shape.tiling(self.torch_dtype, device) for shape in self._shapes]
            self.fingerprint = make_fingerprint(
                source.parts,
                dtype=self.dtype,
                rope=report.rope,
                length=longest_sequence(self.max_model_len, self.num_pages),
                contract=NATIVE_CONTRACT,
                **_native_parts(device),
            )
            self._step: NativeStep | None = None
            self._graphs: DecodeGraphs | None = None
            audit_model(model, self.vocab_size, self)
            if config.plan != "modules":
                self._step = self._fuse(report.calls, required=config.plan == "fused")
            self.plan = "modules" if self._step is None else "fused"
            if self._step is not None and device.type == "cuda":
                pages = pages_for(self.max_model_len)
                self._graphs = DecodeGraphs(
                    self._step, self._shapes, self._tilings, pages, self.max_model_len, device
                )

    def forward(self, batch: Batch) -> Tensor:
        """Logits of ``batch.logit_rows``, valid until the next call. [L, V] float32, on the device.

        Does not wait for the device.
        """
        if not batch.deterministic:
            assert self._allow_fast, "a fast step, and no weights for it"  # requests are refused
        with ops.use(self.profile), torch.inference_mode():
            if self._graphs is not None and self._graphs.fits(batch):
                return self._graphs.forward(batch)
            if self._step is None:
                return self._run_modules(batch)
            return self._run_fused(self._step, batch)

    def _run_modules(self, batch: Batch) -> Tensor:
        context = ForwardContext(self._on_device(batch), self.cache, batch.deterministic)
        return run_modules(self.model, batch, context, self.profile.device)

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

    def _fuse(self, calls: Any, required: bool) -> NativeStep | None:
        """Return the fused plan, if the model is its pattern and both plans agree bit for bit."""
        try:
            step = NativeStep(match(self.model, calls), self.cache)
            with torch.inference_mode():
                fused = partial(self._run_fused, step)
                require(plans_agree(self._run_modules, fused, self.vocab_size), BITS_DIFFER)
        except PatternMismatch as mismatch:
            if required:
                raise UnsupportedModelError(
                    f"plan fused: {type(self.model).__name__}: {mismatch}"
                ) from None
            return None
        return step


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


def _free_memory(device: torch.device) -> int:
    if device.type == "cpu":
        return 1 << 30
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0] * _FREE_SHARE)


def _native_parts(device: torch.device) -> dict[str, str]:
    import triton

    where = "interpreter" if launch.interpreted() else f"sm_{launch.architecture(device)}"
    return {
        "architecture": where,
        "compiler": f"triton {triton.__version__}",
        "kernel_sources": kernel_sources(),
    }
