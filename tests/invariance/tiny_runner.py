"""A real model of two layers on the real CPU kernels, small enough for thousands of steps a minute.

Grouped queries, one layer with a sliding window that crosses pages, one without.
"""

import functools
from types import SimpleNamespace

import numpy as np
import torch
from fake_runner import EOS, FakeTokenizer
from tiny_models import VOCAB, tiny_config, tiny_model

from detinfer import ops
from detinfer.engine.engine import Engine
from detinfer.engine.model_runner import run_modules
from detinfer.kernels.cpu.jit import numba
from detinfer.models.attention import ATTN_IMPLEMENTATION
from detinfer.models.context import ForwardContext
from detinfer.models.fused import FusedStep
from detinfer.models.patches import patch_model

MAX_LEN = 256
WINDOW = 70


@functools.cache
def patched_model(loud=None):
    """The model and the report of its patching, made once: a page pool is all a runner adds.

    Args:
        loud: a token whose embedding is 10,000 times larger than it was.
    """
    config = tiny_config(
        "qwen2",
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    )
    model = tiny_model(config)
    if loud is not None:
        with torch.no_grad():
            model.model.embed_tokens.weight[loud] *= 1e4
    model.config._attn_implementation = ATTN_IMPLEMENTATION
    return model, patch_model(model, torch.float32, MAX_LEN, allow_fast=True)


class TinyModelRunner:
    """What the engine needs of a runner, around the patched model and pages of its own.

    Attributes:
        threads: of the next steps.
        split_chunks: rows so far that left a part of their prompt to a later step.
    """

    profile = ops.PORTABLE
    vocab_size, max_model_len = VOCAB, MAX_LEN
    eos_token_ids = frozenset([EOS])
    model_name, dtype = "tiny", "float32"
    fingerprint = SimpleNamespace(parts={"profile": "portable"}, system_fingerprint="tiny")

    def __init__(self, num_pages, plan="fused", loud=None):
        self.tokenizer = FakeTokenizer()
        self.num_pages, self.plan = num_pages, plan
        self.model, report = patched_model(loud)
        self.cache = ops.KVCache(report.cache_specs, num_pages)
        self._fused = FusedStep(self.model, report.calls, self.cache) if plan == "fused" else None
        self.threads = 1
        self.split_chunks = 0

    def forward(self, batch):
        numba.set_num_threads(min(self.threads, numba.config.NUMBA_NUM_THREADS))
        whole = np.searchsorted(batch.query_start, batch.logit_rows, side="right")
        self.split_chunks += len(batch.query_start) - 1 - len(set(whole.tolist()))
        tensors = ops.BatchTensors(batch.positions, batch.query_start, batch.block_tables)
        if self._fused is None or not batch.deterministic:
            context = ForwardContext(tensors, self.cache, batch.deterministic)
            return run_modules(self.model, batch, context)
        out = np.full((batch.logit_rows.size, VOCAB), np.nan, np.float32)
        self._fused.forward(batch.input_ids, tensors, batch.logit_rows, out)
        return torch.from_numpy(out)

    def spoil(self, pages):
        """Fill pages with NaN: whoever reads what nobody has written shows it."""
        pages = list(pages)
        for memory in (*self.cache.keys, *self.cache.values):
            memory[pages] = np.nan


def make_tiny_engine(config):
    """A factory for the engine process: eight pages, one thread."""
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    return Engine(config, TinyModelRunner(num_pages=8))
