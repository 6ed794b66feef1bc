"""From a ``Batch`` to logits: loads a model, proves at load what it may promise, runs steps."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from detinfer import ops
from detinfer.config import DTYPES, PLANS, EngineConfig, usable_cores
from detinfer.engine.batch import Batch
from detinfer.environment import check_environment
from detinfer.errors import ConfigError, ModelLoadError, RequestError, UnsupportedModelError
from detinfer.fingerprint import make_fingerprint
from detinfer.kernels.cpu.jit import numba
from detinfer.models.attention import ATTN_IMPLEMENTATION
from detinfer.models.audit import audit_model
from detinfer.models.context import ForwardContext, forward_context
from detinfer.models.fused import FusedStep, PatternMismatch, plans_agree
from detinfer.models.loader import ModelFiles, load_tokenizer, resolve_model
from detinfer.models.patches import patch_model
from detinfer.models.weight_file import read_header

Float32Array = npt.NDArray[np.float32]
MIN_PAGES = 2


class ModelRunner:
    """One model on one device, and the page pool it attends over.

    Args:
        config: see ``EngineConfig``.

    Raises:
        ConfigError: a setting or the environment cannot work.
        ModelLoadError: the model cannot be found or read.
        UnsupportedModelError: the model's bits cannot be guaranteed.

    Attributes:
        plan: ``fused`` where the whole step is one compiled call, else ``modules``.
        num_pages: pages of 64 tokens in the pool.
        fingerprint: what the bits depend on.
    """

    def __init__(self, config: EngineConfig) -> None:
        check_environment()
        _check(config)
        self.threads = _threads(config.threads)
        torch.set_num_threads(self.threads)
        numba.set_num_threads(self.threads)
        files = resolve_model(config.model, progress=sys.stderr.isatty())
        self.tokenizer = load_tokenizer(files)
        self.model_name = files.name
        self.torch_dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
        self.dtype = str(self.torch_dtype).removeprefix("torch.")

        model = load_model(files)
        text_config = model.config.get_text_config()
        self.vocab_size: int = text_config.vocab_size
        self.max_model_len = _max_model_len(config.max_model_len, text_config)
        self.eos_token_ids = _eos_token_ids(model)
        self._allow_fast = config.allow_fast
        self.model = model
        report = patch_model(model, self.torch_dtype, self.max_model_len, config.allow_fast)
        self.num_pages = _num_pages(config.kv_cache_memory, report.cache_specs)
        self.cache = ops.KVCache(report.cache_specs, self.num_pages, self.torch_dtype)
        rope = ", ".join(f"{name}={pin}" for name, pin in sorted(report.rope_pins.items()))
        self.fingerprint = make_fingerprint(files, dtype=self.dtype, rope=rope or "none")

        self._logits = np.empty((0, self.vocab_size), np.float32)
        self._fused: FusedStep | None = None
        audit_model(model, self.vocab_size, self)
        if config.plan != "modules":
            self._fused = self._fuse(report.calls, required=config.plan == "fused")
        self.plan = "modules" if self._fused is None else "fused"

    def forward(self, batch: Batch) -> Float32Array:
        """Logits of ``batch.logit_rows``, valid until the next call. [L, V] float32"""
        numba.set_num_threads(self.threads)  # the setting is per thread
        tensors = ops.BatchTensors(batch.positions, batch.query_start, batch.block_tables)
        if self._fused is None or not batch.deterministic:
            return self._run_modules(batch, tensors)
        rows = batch.logit_rows.size
        if self._logits.shape[0] < rows:
            self._logits = np.empty((rows, self.vocab_size), np.float32)
        out = self._logits[:rows]
        self._fused.forward(batch.input_ids, tensors, batch.logit_rows, out)
        return out

    def _run_modules(self, batch: Batch, tensors: ops.BatchTensors) -> Float32Array:
        if not batch.deterministic and not self._allow_fast:
            raise RequestError(
                "deterministic: got false, but this engine runs without the fast mode",
                "deterministic",
            )
        context = ForwardContext(tensors, self.cache, batch.deterministic)
        with torch.inference_mode(), forward_context(context):
            logits = self.model(
                input_ids=torch.from_numpy(batch.input_ids).long().unsqueeze(0),
                position_ids=torch.from_numpy(batch.positions).long().unsqueeze(0),
                use_cache=False,
                past_key_values=None,
                logits_to_keep=torch.from_numpy(batch.logit_rows).long(),
            ).logits[0]
        array: Float32Array = logits.float().contiguous().numpy()
        return array

    def _fuse(self, calls: Any, required: bool) -> FusedStep | None:
        """The fused plan, if the model is its pattern and both plans agree bit for bit."""
        try:
            if self.torch_dtype != torch.float32:
                raise PatternMismatch(f"dtype {self.dtype}: only float32 activations are fused")
            fused = FusedStep(self.model, calls, self.cache)
            if not plans_agree(self.forward, fused):
                raise PatternMismatch("its bits differ from the modules' on a small batch")
        except PatternMismatch as mismatch:
            if required:
                raise UnsupportedModelError(
                    f"plan fused: {type(self.model).__name__}: {mismatch}"
                ) from None
            return None
        return fused


def load_model(files: ModelFiles) -> Any:
    """A causal language model with our attention, in the widest dtype its weights are stored in.

    Raises:
        ModelLoadError: transformers cannot build or fill it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    stored = {info.dtype for path in files.weights for info in read_header(path).values()}
    dtype = torch.bfloat16 if stored == {"BF16"} else torch.float32
    try:
        return AutoModelForCausalLM.from_pretrained(
            files.folder,
            dtype=dtype,
            attn_implementation=ATTN_IMPLEMENTATION,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except Exception as error:  # its loaders let all kinds through
        reason = str(error).strip().splitlines()
        raise ModelLoadError(
            f"{files.folder}: cannot be loaded ({reason[0] if reason else type(error).__name__})"
        ) from error


def _check(config: EngineConfig) -> None:
    if config.device not in ("auto", "cpu"):
        raise ConfigError(f"device: got {config.device!r}, only cpu is built so far")
    if config.numerics not in ("auto", "portable"):
        raise ConfigError(f"numerics: got {config.numerics!r}, only portable is built so far")
    for name, known in (("plan", PLANS), ("dtype", DTYPES)):
        value = getattr(config, name)
        if value not in known:
            raise ConfigError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
    for name in ("max_num_seqs", "max_num_batched_tokens", "kv_cache_memory"):
        value = getattr(config, name)
        if value < 1:
            raise ConfigError(f"{name}: got {value}, expected at least 1")


def _threads(asked: int | None) -> int:
    cores = usable_cores()
    threads = cores if asked is None else asked
    if not 1 <= threads <= min(cores, numba.config.NUMBA_NUM_THREADS):
        raise ConfigError(f"threads: got {threads}, expected 1..{cores} (usable cores)")
    return threads


def _max_model_len(asked: int | None, config: Any) -> int:
    longest = int(config.max_position_embeddings)
    if asked is not None and not 1 <= asked <= longest:
        raise ConfigError(f"max_model_len: got {asked}, expected 1..{longest}")
    return asked or longest


def _eos_token_ids(model: Any) -> frozenset[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)


def _num_pages(memory: int, specs: list[ops.LayerCacheSpec]) -> int:
    page = sum(spec.page_bytes for spec in specs)
    if memory // page < MIN_PAGES:
        raise ConfigError(
            f"kv_cache_memory: got {memory} bytes, expected at least {MIN_PAGES * page} "
            f"({MIN_PAGES} pages of 64 tokens)"
        )
    return memory // page
