"""Where a model comes from: the one public door to finding, fetching and checking models."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from detinfer.checkpoint import default_model
from detinfer.checkpoint.files import cached_sha256
from detinfer.checkpoint.folder import (
    find_weights,
    one_line,
    peek_config,
    quiet_transformers,
    read_config,
)
from detinfer.checkpoint.gguf.convert import (
    CONVERTER_VERSION,
    FORMAT_FILE,
    PACKED,
    WEIGHTS_FILE,
    convert_gguf,
)
from detinfer.checkpoint.gguf.file import check_magic
from detinfer.checkpoint.hub import fetch_from_hub
from detinfer.checkpoint.model_files import ModelFiles
from detinfer.checkpoint.progress import progress_bar
from detinfer.checkpoint.quantized_folder import quantized
from detinfer.checkpoint.stamps import check_unchanged, take_stamps
from detinfer.checkpoint.store import build_once
from detinfer.checkpoint.tokenizer import explain_tokenizer, settle
from detinfer.errors import ConfigError, ModelLoadError
from detinfer.folders import cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def resolve_model(
    model: str | None = None,
    *,
    weights: str = "auto",
    quantize: str | None = None,
    progress: bool = False,
) -> ModelFiles:
    """Find a model, fetching and converting it if it is not on this machine yet.

    Args:
        model: a folder, a ``.gguf`` file or a hub id ``org/name``; None, or its name where no
            file or folder has it, is the default model.
        weights: whether a GGUF file's blocks stay ``packed`` (as with ``auto``) or are
            ``dequantized``; see ``EngineConfig``.
        quantize: what format a checkpoint's weights are rounded to; see ``EngineConfig``.
        progress: show what takes long on stderr.

    Raises:
        ModelLoadError: there is no such model, or it cannot be fetched, or its files are damaged.
        UnsupportedModelError: a kind of model, or of file, that is not supported; named.
        ConfigError: the cache folder cannot be written; the model has no blocks to keep packed, or
            has been quantised already.
    """
    model = _unless_default(model)
    path = _local_path(model)
    _check_blocks(model, path, weights, quantize)
    if model is None:
        return _default(weights, progress)
    if path is not None and not path.is_dir():
        return _from_gguf(path.resolve(), weights, progress)
    if path is None:
        files = _from_folder(fetch_from_hub(model, progress), model)
    else:
        files = _from_folder(path, path.resolve().name)
    return files if quantize is None else quantized(files, quantize, progress)


def has_default_model() -> bool:
    """Return whether the default model, as it is served by default, is on this machine already."""
    return _converted_folder(default_model.GGUF_SHA256, packed=True).is_dir()


def check_model(model: str | None, weights: str = "auto", quantize: str | None = None) -> None:
    """Refuse what ``resolve_model`` would, as far as it shows in a moment and without a network.

    Raises:
        ModelLoadError: there is no such model, or its files are damaged.
        UnsupportedModelError: a kind of model, or of file, that is not supported; named.
        ConfigError: a model without blocks to keep packed, or that has been quantised already.
    """
    model = _unless_default(model)
    path = _local_path(model)
    _check_blocks(model, path, weights, quantize)
    if path is None:
        return
    if path.is_dir():
        peek_config(path)
        find_weights(path)
    else:
        check_magic(path)


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """Return the model's tokenizer, which must be a fast one; never runs code from the model.

    Raises:
        ModelLoadError: the folder has no tokenizer, or one that cannot be loaded.
        UnsupportedModelError: one that draws tokens at random.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    quiet_transformers()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files.folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # its loaders let all kinds through
        explain_tokenizer(files.folder)
        raise ModelLoadError(
            f"{files.folder}: its tokenizer cannot be loaded ({one_line(error)})"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelLoadError(
            f"{files.folder}: its tokenizer is a {type(tokenizer).__name__}, expected a fast one "
            "(tokenizer.json)"
        )
    settle(tokenizer, files.folder)
    return tokenizer


def _unless_default(model: str | None) -> str | None:
    """Return None for the default model's name, unless a file or folder here has it."""
    return None if model == default_model.NAME and not os.path.exists(model) else model


def _local_path(model: str | None) -> Path | None:
    """Return a folder or ``.gguf`` file on this machine; None for a hub id or the default."""
    if model is None:
        return None
    path = os.path.expanduser(model)
    if os.path.isdir(path) and model:
        return Path(path)
    if os.path.isfile(path):
        if not model.endswith(".gguf"):
            raise ModelLoadError(f"model {model!r}: expected a folder or a .gguf file")
        return Path(path)
    if not model.endswith(".gguf") and _HUB_ID.fullmatch(model):
        return None
    raise ModelLoadError(
        f"model {model!r}: no such file or folder, and not a hub id (org/name) either"
    )


def _default(weights: str, progress: bool) -> ModelFiles:
    packed = weights != "dequantized"
    folder = _converted_folder(default_model.GGUF_SHA256, packed)
    with progress_bar(progress) as report:
        build_once(
            folder,
            lambda new: default_model.build_default_model(new, report, packed),
            what="default model",
        )
    return _from_converted(folder, default_model.NAME)


def _from_gguf(path: Path, weights: str, progress: bool) -> ModelFiles:
    stamps = take_stamps(path)
    packed = weights != "dequantized"
    folder = _converted_folder(cached_sha256(path), packed)

    def build(new: Path) -> None:
        convert_gguf(path, new, report, packed)
        check_unchanged(stamps, path)  # else the folder would hold another file than it is named by

    with progress_bar(progress) as report:
        build_once(folder, build, what=str(path))
    files = _from_converted(folder, path.stem)
    if not files.weight_format.startswith(PACKED):
        _refuse_packed(str(path), weights)
    return files


def _check_blocks(model: str | None, path: Path | None, weights: str, quantize: str | None) -> None:
    """Refuse to quantise what is in blocks already, or to keep blocks where none will be."""
    if model is None or (path is not None and not path.is_dir()):
        if quantize is not None:
            raise ConfigError(
                f"quantize: got {quantize!r}, but {model or 'the default model'} is a GGUF file, "
                "quantised when it was made: expected a Hugging Face folder or hub id"
            )
    elif quantize is None:
        _refuse_packed(model, weights)


def _refuse_packed(model: str, weights: str) -> None:
    """Refuse to keep blocks of a model that has none."""
    if weights == PACKED:
        raise ConfigError(
            f"weights: got 'packed', but {model} has no quantised blocks that could stay packed: "
            "only GGUF files have (Q4_K_M, Q8_0 and others), and what --quantize makes"
        )


def _from_converted(folder: Path, name: str) -> ModelFiles:
    stamps = take_stamps(folder)
    weight_format = (folder / FORMAT_FILE).read_text().strip()
    return ModelFiles(folder, name, (folder / WEIGHTS_FILE,), weight_format, stamps)


def _from_folder(folder: Path, name: str) -> ModelFiles:
    stamps = take_stamps(folder)
    read_config(folder)
    files, weight_format = find_weights(folder)
    return ModelFiles(folder, name, files, weight_format, stamps)


def _converted_folder(sha256: str, packed: bool) -> Path:
    kept = f"-{PACKED}" if packed else ""
    return cache_dir() / "models" / f"gguf-{sha256[:16]}-{CONVERTER_VERSION}{kept}"
