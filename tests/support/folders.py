"""Model folders on disk: tiny models with a tokenizer, which the engine loads like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB, tiny_config, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from detinfer.config import EngineConfig
from detinfer.runner.portable import ModelRunner

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"


def write_folder(folder: Path, architecture: str = "llama", **overrides: Any) -> Path:
    """A model in float32 and a tokenizer of words ``t3`` to ``t130``."""
    if architecture == "llama":
        overrides = {"hidden_size": 48, "tie_word_embeddings": False} | overrides
    tiny_model(tiny_config(architecture, **overrides)).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0").save_pretrained(folder)
    return folder


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Rewrites a folder's weights; ``change`` may edit the tensors in place."""
    tensors = load_file(folder / WEIGHTS)
    tensors = change(tensors) or tensors
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / WEIGHTS)


def load(folder: Path, **settings: Any) -> ModelRunner:
    """The model as an engine has it, on one thread."""
    given = {"threads": 1, "kv_cache_memory": 4 << 20} | settings
    return ModelRunner(EngineConfig(model=str(folder), **given).resolve())
