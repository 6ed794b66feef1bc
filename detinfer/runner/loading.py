"""What every model runner does first: read the model, and see what it may promise."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from detinfer import ops
from detinfer.checkpoint.folder import one_line, quiet_transformers, read_json
from detinfer.checkpoint.generation_defaults import generation_defaults
from detinfer.checkpoint.loader import load_tokenizer, resolve_model
from detinfer.checkpoint.model_files import ModelFiles
from detinfer.checkpoint.stamps import check_unchanged
from detinfer.checkpoint.tensors import StoredTensor, check_layers, check_whole, open_tensors
from detinfer.checkpoint.weight_file import read_header
from detinfer.errors import (
    ConfigError,
    DetinferError,
    ModelLoadError,
    UnsupportedModelError,
)
from detinfer.kernels.constants import BLOCK_FORMATS
from detinfer.machine import check_weights, usable_cores
from detinfer.models.attention import ATTN_IMPLEMENTATION
from detinfer.models.rope_table import MAX_POSITIONS
from detinfer.runner.fingerprint import file_parts

MIN_PAGES = 2


@dataclass(frozen=True)
class Source:
    """A model in memory, before it is patched.

    Attributes:
        model: on the CPU, with attention implementation ``detinfer``.
        dtype: its weights are stored in.
        parts: of the fingerprint, those that name the files.
        generation_defaults: see ``EngineInfo``.
        packed: weights kept in their quantised blocks, by the parameter that stands for them.
    """

    model: Any
    tokenizer: Any
    name: str
    dtype: torch.dtype
    parts: dict[str, str]
    generation_defaults: dict[str, Any] = field(default_factory=dict)
    packed: dict[str, Any] = field(default_factory=dict)


def stored_dtype(files: ModelFiles) -> torch.dtype:
    """Return the one 16-bit dtype all weights but blocks are stored in, else float32."""
    stored = {info.dtype for path in files.weights for info in read_header(path).values()}
    stored -= BLOCK_FORMATS.keys()
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get("".join(stored), torch.float32)


def read_source(model: str | None, weights: str = "auto", quantize: str | None = None) -> Source:
    """Find and read a model.

    Args:
        model: see ``EngineConfig``.
        weights: see ``EngineConfig``.
        quantize: see ``EngineConfig``.

    Raises:
        ModelLoadError: it cannot be found or read, is not whole, or changed while it was read.
        UnsupportedModelError: a kind of model, or of file, that is not supported; named.
    """
    progress = sys.stderr.isatty()
    files = resolve_model(model, weights=weights, quantize=quantize, progress=progress)
    check_weights(files.name, sum(path.stat().st_size for path in files.weights))
    tokenizer = load_tokenizer(files)
    source = Source(
        load_model(files),
        tokenizer,
        files.name,
        stored_dtype(files),
        file_parts(files, tokenizer),
        generation_defaults(files.folder),
        read_packed(files),
    )
    check_unchanged(files.stamps, files.folder, *{path.parent for path in files.weights})
    return source


def load_model(files: ModelFiles) -> Any:
    """Build a causal language model with our attention, in the widest dtype of its weights.

    transformers is handed the tensors of ``files`` by name; it opens no weights of its own, so
    that no setting and no other file of the folder decides what is loaded. Weights that the files
    have in quantised blocks stay empty: see ``read_packed``.

    Raises:
        ModelLoadError: transformers cannot build or fill it, or a tensor is missing, has no place
            or holds what is no number.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    quiet_transformers()
    local: dict[str, Any] = {"local_files_only": True}
    given: dict[str, Any] = {}
    try:
        config = AutoConfig.from_pretrained(files.folder, trust_remote_code=False, **local)
        if (files.folder / "generation_config.json").is_file():
            _check_ends(files.folder / "generation_config.json")
            given["generation_config"] = GenerationConfig.from_pretrained(files.folder, **local)
        dtype = torch.bfloat16 if stored_dtype(files) == torch.bfloat16 else torch.float32
        with open_tensors(files.weights, stand_in=dtype) as tensors:
            check_layers(config, tensors, files.folder)
            with torch.device("meta"):  # only to learn which class it is
                empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            model, info = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=tensors,
                dtype=dtype,
                attn_implementation=ATTN_IMPLEMENTATION,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
                **local,
                **given,
            )
            check_whole(model, tensors, info, files.folder)
    except DetinferError:
        raise
    except Exception as error:  # its loaders let all kinds through
        reason = one_line(error)
        if reason.startswith("Unrecognized configuration class"):
            raise UnsupportedModelError(
                f"{files.folder / 'config.json'}: model_type {config.model_type!r} is not of a "
                "model that generates text"
            ) from error
        raise ModelLoadError(f"{files.folder}: cannot be loaded ({reason})") from error
    return model


def read_packed(files: ModelFiles) -> dict[str, Any]:
    """Pack the weights that the files have in quantised blocks, one at a time on each core.

    Returns:
        ``ops.pack_blocks``'s weights by the name of their parameter; of stacked experts a list.

    Raises:
        ModelLoadError: a file cannot be read.
    """
    with open_tensors(files.weights) as tensors, ThreadPoolExecutor(usable_cores()) as pool:
        blocks = {name: tensor for name, tensor in tensors.items() if tensor.is_packed}
        return dict(zip(blocks, pool.map(_pack, blocks.values()), strict=True))


def _pack(tensor: StoredTensor) -> Any:
    blocks, kind, (*stack, n, k) = tensor.read(), tensor.info.dtype, tensor.info.shape
    if not stack:
        return ops.pack_blocks(blocks, kind, n, k)
    return [ops.pack_blocks(one, kind, n, k) for one in blocks.reshape(*stack, -1)]


def max_model_len(asked: int | None, config: Any) -> int:
    """Longest sequence served.

    Args:
        asked: by the user, if at all.
        config: the model's text configuration.

    Raises:
        ConfigError: longer than the model's own, or than rotary tables are exact for.
    """
    longest = min(int(config.max_position_embeddings), MAX_POSITIONS)
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


def _check_ends(path: Path) -> None:
    """Check the ids that end an answer: transformers takes any value."""
    eos = read_json(path).get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise ModelLoadError(
            f"{path}: eos_token_id: got {eos!r}, expected a token id or a list of them"
        )


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
