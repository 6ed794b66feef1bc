"""What every model runner does first: read the model, and see what it may promise."""

from __future__ import annotations

from typing import Any

import torch

from detinfer.errors import ConfigError, ModelLoadError
from detinfer.models.attention import ATTN_IMPLEMENTATION
from detinfer.models.loader import ModelFiles
from detinfer.models.weight_file import read_header

MIN_PAGES = 2


def stored_dtype(files: ModelFiles) -> torch.dtype:
    """The one 16-bit dtype all weights are stored in, else float32."""
    stored = {info.dtype for path in files.weights for info in read_header(path).values()}
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get("".join(stored), torch.float32)


def load_model(files: ModelFiles) -> Any:
    """A causal language model with our attention, in the widest dtype its weights are stored in.

    Raises:
        ModelLoadError: transformers cannot build or fill it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = torch.bfloat16 if stored_dtype(files) == torch.bfloat16 else torch.float32
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


def max_model_len(asked: int | None, config: Any) -> int:
    """Longest sequence served.

    Args:
        asked: by the user, if at all.
        config: the model's text configuration.

    Raises:
        ConfigError: longer than the model's own.
    """
    longest = int(config.max_position_embeddings)
    if asked is not None and not 1 <= asked <= longest:
        raise ConfigError(f"max_model_len: got {asked}, expected 1..{longest}")
    return asked or longest


def eos_token_ids(model: Any) -> frozenset[int]:
    """Tokens that end an answer."""
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)


def num_pages(memory: int, page_bytes: int) -> int:
    """Pages of 64 tokens that fit in ``memory`` bytes.

    Raises:
        ConfigError: too few to serve anything.
    """
    if memory // page_bytes < MIN_PAGES:
        raise ConfigError(
            f"kv_cache_memory: got {memory} bytes, expected at least {MIN_PAGES * page_bytes} "
            f"({MIN_PAGES} pages of 64 tokens)"
        )
    return memory // page_bytes
