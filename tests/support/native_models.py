"""Tiny models on the Triton kernels, in the interpreter."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import tiny_config, tiny_model

from benchmarks.interpreter import install
from detinfer.config import EngineConfig
from detinfer.kernels.triton import cache, norms
from detinfer.models.attention import ATTN_IMPLEMENTATION
from detinfer.runner.native import NativeRunner, Source

install()

# Wide programs, which the interpreter runs one by one; how rows are cut never changes a bit.
norms.MANY_ROWS = cache.MANY_TOKENS = 1

# As small as the awkward sizes allow: three heads a group, 48 = 3 x 16 columns, a padded K.
SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


class _Backend:
    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """None are special."""
        return {}

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(33 + token) for token in token_ids)


class Tokenizer:
    """A character a token."""

    backend_tokenizer = _Backend()


def native_runner(
    architecture: str,
    stored: torch.dtype = torch.bfloat16,
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> NativeRunner:
    """A runner over a tiny random model; stale pages are full of NaN."""
    model = tiny_model(tiny_config(architecture, **(config or {})), stored)
    model.config._attn_implementation = ATTN_IMPLEMENTATION
    parts = dict.fromkeys(("weights", "weight_format", "tokenizer", "config"), "random")
    source = Source(model, Tokenizer(), architecture, stored, parts)
    given = {"numerics": "native", "device": "cpu", "kv_cache_memory": 1 << 20, **settings}
    runner = NativeRunner(EngineConfig(**given).resolve(), source)
    for pages in (*runner.cache.keys, *runner.cache.values):
        pages.fill_(float("nan"))
    return runner
