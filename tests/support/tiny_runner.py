"""Real models of two layers on the real CPU kernels, small enough for thousands of steps a minute.

Grouped queries; the first has one layer with a sliding window that crosses pages, one without.
"""

import functools
import itertools
from types import SimpleNamespace
from typing import ClassVar

import gguf
import numpy as np
import torch
from fake_runner import EOS, FakeTokenizer
from gguf_samples import quantize
from kernel_inputs import numbers
from tiny_models import VOCAB, tiny_config, tiny_model

from detinfer import ops
from detinfer.engine.engine import Engine
from detinfer.kernels.cpu.jit import numba
from detinfer.models.attention import ATTN_IMPLEMENTATION
from detinfer.models.context import ForwardContext
from detinfer.models.patches import patch_model
from detinfer.runner.plans import run_modules
from detinfer.runner.portable_fused import FusedStep

# No multiple of a page: the last page has room for positions that the rotary table lacks.
MAX_LEN = 250
LONG = 4290
WINDOW = 70

_COMMON = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
_WIDE = {"hidden_size": 256, "intermediate_size": 256}  # rows of whole blocks of 256


def _windowed(window):
    return {**_COMMON, "use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}


# Architecture, what it is given, and the model's length.
MODELS = {
    "windowed": ("qwen2", _windowed(WINDOW), MAX_LEN),
    # Contexts of several segments of 512 keys, one layer with a window over two of them.
    "long": ("qwen2", {**_windowed(700), "max_position_embeddings": LONG}, LONG),
    # A sum of two numbers has no order: three and four experts a token.
    "experts-3": ("mixtral", {**_COMMON, "num_experts_per_tok": 3}, MAX_LEN),
    "long-experts": (
        "mixtral",
        {**_COMMON, "num_experts_per_tok": 3, "max_position_embeddings": LONG},
        LONG,
    ),
    "experts-4": ("mixtral", {**_COMMON, "num_experts_per_tok": 4}, MAX_LEN),
    # Weights in quantised blocks, matrix by matrix in formats that take turns.
    "packed": ("qwen2", _windowed(WINDOW), MAX_LEN),
    "long-packed": ("qwen2", {**_windowed(700), "max_position_embeddings": LONG}, LONG),
    "packed-k": ("qwen2", {**_windowed(WINDOW), **_WIDE}, MAX_LEN),
    "packed-experts": ("mixtral", {**_COMMON, **_WIDE, "num_experts_per_tok": 3}, MAX_LEN),
}
# The embedding and the head have the first, one with offsets.
_PACKED = dict.fromkeys(("packed", "long-packed"), ("Q4_1", "Q8_0", "Q4_0", "Q5_0", "Q5_1"))
_PACKED |= dict.fromkeys(("packed-k", "packed-experts"), ("Q4_K", "Q6_K", "Q5_K"))


@functools.cache
def patched_model(name="windowed", loud=None, redrawn=False):
    """A model of MODELS, the report of its patching and the model's length, made once.

    Args:
        loud: a token whose embedding is 10,000 times larger than it was.
        redrawn: whether NumPy draws the parameters: the same on every CPU, which PyTorch's are not.
    """
    architecture, given, max_len = MODELS[name]
    model = tiny_model(tiny_config(architecture, **given))
    if redrawn:
        _redraw(model, np.random.default_rng(1))
    if loud is not None:
        with torch.no_grad():
            model.model.embed_tokens.weight[loud] *= 1e4
    model.config._attn_implementation = ATTN_IMPLEMENTATION
    packed = _in_blocks(model, _PACKED[name]) if name in _PACKED else {}
    return model, patch_model(model, torch.float32, max_len, True, packed), max_len


def _redraw(model, rng):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = rng.normal(float("norm" in name), 0.2, parameter.shape)
            parameter.copy_(torch.from_numpy(values))


def _in_blocks(model, kinds):
    """The matrices of a model, but for routers, as quantised blocks by name; of experts a list."""

    def pack(values, kind):
        blocks = torch.from_numpy(quantize(values, gguf.GGMLQuantizationType[kind]))
        return ops.pack_blocks(blocks, kind, *values.shape)

    matrices = {
        name: parameter.detach().numpy()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not name.endswith("mlp.gate.weight")
    }
    return {
        name: pack(values, kind) if values.ndim == 2 else [pack(one, kind) for one in values]
        for (name, values), kind in zip(matrices.items(), itertools.cycle(kinds), strict=False)
    }


class TinyModelRunner:
    """What the engine needs of a runner, around the patched model and pages of its own.

    Args:
        num_pages: of its pool.
        plan: ``fused``, or ``modules``, whose ops a test can replace.
        loud, redrawn: as in ``patched_model``.
        model: of ``MODELS``.
        kv_cache_dtype: of its pages.

    Attributes:
        threads: of the next steps.
        split_chunks: rows so far that left a part of their prompt to a later step.
    """

    profile = ops.PORTABLE
    vocab_size = VOCAB
    eos_token_ids = frozenset([EOS])
    model_name, dtype = "tiny", "float32"
    generation_defaults: ClassVar[dict] = {}
    fingerprint = SimpleNamespace(parts={"profile": "portable"}, system_fingerprint="tiny")

    def __init__(
        self,
        num_pages,
        plan="fused",
        loud=None,
        model="windowed",
        kv_cache_dtype="float32",
        redrawn=False,
    ):
        self.tokenizer = FakeTokenizer()
        self.num_pages, self.plan = num_pages, plan
        self.model, report, self.max_model_len = patched_model(model, loud, redrawn)
        self.hidden_size = self.model.get_output_embeddings().in_features
        self.kv_cache_dtype = kv_cache_dtype
        kept = getattr(torch, kv_cache_dtype)
        self.cache = ops.KVCache(report.cache_specs, num_pages, kept=kept)
        self._fused = FusedStep(self.model, report.calls, self.cache) if plan == "fused" else None
        self.threads = 1
        self.split_chunks = 0
        self.rows = []  # of every step
        self.failing = None  # "before" or "after" the model has run: what the next step meets

    def forward(self, batch):
        failing, self.failing = self.failing, None
        if failing == "before":
            raise RuntimeError("injected fault")
        self.rows.append(len(batch.input_ids))
        assert batch.positions.max() < self.max_model_len, "past the rotary table"
        logits = self._forward(batch)
        if failing == "after":
            raise RuntimeError("injected fault")
        return logits

    def _forward(self, batch):
        numba.set_num_threads(min(self.threads, numba.config.NUMBA_NUM_THREADS))
        whole = np.searchsorted(batch.query_start, batch.logit_rows, side="right")
        self.split_chunks += len(batch.query_start) - 1 - len(set(whole.tolist()))
        tensors = ops.BatchTensors(batch.positions, batch.query_start, batch.block_tables)
        if self._fused is None or not batch.deterministic:
            context = ForwardContext(tensors, self.cache, batch.deterministic)
            logits, self.hidden = run_modules(self.model, batch, context)
            return logits
        out = np.full((batch.logit_rows.size, VOCAB), np.nan, np.float32)
        hidden = self._fused.forward(
            batch.input_ids, tensors, batch.logit_rows, out, batch.hidden_rows
        )
        self.hidden = torch.from_numpy(hidden)
        return torch.from_numpy(out)

    def spoil(self, pages):
        """Fill pages with NaN: whoever reads what nobody has written shows it."""
        pages = list(pages)
        for memory in numbers(self.cache):
            memory[pages] = torch.nan


def make_tiny_engine(config):
    """A factory for the engine process: eight pages, one thread."""
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    return Engine(config, TinyModelRunner(num_pages=8))
