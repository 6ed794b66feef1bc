"""A Hugging Face checkpoint's weights in quantised blocks: made once, kept in the cache.

Configuration and tokenizer are read where they are: the cached folder has the weights alone.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detinfer.checkpoint.blocks import are_numbers
from detinfer.checkpoint.folder import FLOATS
from detinfer.checkpoint.model_files import ModelFiles, config_digest, hash_json, weights_digest
from detinfer.checkpoint.progress import Report, progress_bar
from detinfer.checkpoint.quantiser import QUANTISER_VERSION, quantise
from detinfer.checkpoint.stamps import check_unchanged, take_stamps
from detinfer.checkpoint.store import build_once
from detinfer.checkpoint.weight_file import ITEM_BYTES, TensorInfo, read_header, write_weights
from detinfer.errors import ConfigError, ModelLoadError
from detinfer.folders import cache_dir
from detinfer.kernels.constants import BLOCK_FORMATS

_WEIGHTS = "model.safetensors"
_HEAD = "Q8_0"  # the output layer, and an embedding that is tied to it: as llama.cpp has them
_OTHER = "Q4_1"  # where rows are no whole blocks of Q4_K
# Which experts a token goes to is decided by few numbers, in the checkpoint's own precision.
_ROUTER = re.compile(r"(.*\.)?(gate|shared_expert_gate|router)\.(.*\.)?weight")
# A layer's experts are one parameter each for gate and up, and for down; tensors of checkpoints.
_STACKED = {"gate_up_proj": ("gate_proj", "up_proj", "w1", "w3"), "down_proj": ("down_proj", "w2")}
_ROWS = 4096  # quantised at a time

_log = logging.getLogger(__name__)


def quantized(files: ModelFiles, quantize: str, progress: bool) -> ModelFiles:
    """Return a checkpoint whose weights are in blocks; its other files stay where they are.

    The cached folder is named by the contents it was made of, its format and the formulas' version.

    Args:
        files: the checkpoint.
        quantize: what to round its weights to, as ``q8_0``.
        progress: show it on stderr.

    Raises:
        ModelLoadError: the checkpoint cannot be read, or changed meanwhile, or a weight is too
            large; no disk space.
        ConfigError: none of its weights can be put into blocks; the cache cannot be written.
    """
    kind = quantize.upper()
    source = hash_json([weights_digest(files), config_digest(files)])[:16]
    folder = cache_dir() / "models" / f"quantized-{source}-{quantize}-{QUANTISER_VERSION}"
    path = folder / _WEIGHTS

    def build(new: Path) -> None:
        _write(new / _WEIGHTS, files.folder, files.weights, kind, report)
        check_unchanged(files.stamps, files.folder)

    with progress_bar(progress) as report:
        build_once(folder, build, what=f"{files.name} in {quantize}")
    stamps = {**files.stamps, **take_stamps(folder)}
    return replace(files, weights=(path,), weight_format=_describe(path, kind), stamps=stamps)


def _write(path: Path, folder: Path, weights: tuple[Path, ...], kind: str, report: Report) -> None:
    """Write a checkpoint's weights to one file, its matrices in quantised blocks.

    In blocks are linear layers, experts among them but no router, and the input embedding. All else
    stays as it is stored, and so does a matrix whose rows are no whole blocks of 32.

    Args:
        path: file to make.
        folder: of the checkpoint, with config.json.
        weights: its files.
        kind: Q8_0, Q4_0, Q4_1 or Q4_K; the output layer gets Q8_0.
        report: is told how far it is.

    Raises:
        ModelLoadError: the checkpoint cannot be read, or a weight is too large for ``kind``.
        ConfigError: none of its weights can be put into blocks.
    """
    from detinfer.checkpoint.tensors import open_tensors

    with open_tensors(weights) as tensors:
        plan = _plan(folder, {name: tensor.info for name, tensor in tensors.items()}, kind)
        written = {name: info for name, (info, _) in sorted(plan.items())}
        if not any(info.dtype in BLOCK_FORMATS for info in written.values()):
            raise ConfigError(
                f"quantize: got {kind.lower()!r}, but no tensor of {folder} is the weight of a "
                "linear layer with rows of whole blocks of 32"
            )
        sources = {name: [tensors[source] for source in plan[name][1]] for name in written}
        write_weights(path, written, _contents(written, sources, report))


def _describe(path: Path, kind: str) -> str:
    """Return the weight format of such a file; warn of what is not of the format asked for."""
    kinds: dict[str, list[str]] = {}
    as_stored = []
    for name, info in read_header(path).items():
        kinds.setdefault(info.dtype, []).append(name)
        if info.dtype in FLOATS and len(info.shape) > 1 and not _ROUTER.fullmatch(name):
            as_stored.append(name)
    if kind == "Q4_K" and _OTHER in kinds:
        _warn(kind, kinds[_OTHER], f"of rows that are no whole blocks of 256: {_OTHER}")
    if as_stored:
        _warn(kind, as_stored, "not in a linear layer of whole blocks: as stored")
    packed = "+".join(sorted(kinds.keys() & BLOCK_FORMATS.keys()))
    rest = "+".join(sorted(FLOATS[one] for one in kinds.keys() & FLOATS.keys()))
    text = f"packed {packed} by quantiser {QUANTISER_VERSION}"
    return f"{text}, {rest}" if rest else text


def _warn(kind: str, names: list[str], what: str) -> None:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    _log.warning("quantize %s: %s%s, %s", kind.lower(), names[0], more, what)


def _plan(
    folder: Path, stored: Mapping[str, TensorInfo], kind: str
) -> dict[str, tuple[TensorInfo, list[str]]]:
    """Return each tensor that will be written, by name, and the stored ones it is made of."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    plan = {name: (info, [name]) for name, info in stored.items()}
    for name, weight, sources in _matrices(model, stored):
        shape, found = tuple(weight.shape), [stored[one] for one in sources if one in stored]
        rows = {(info.dtype in FLOATS, *info.shape[len(info.shape) - 1 :]) for info in found}
        count = sum(math.prod(info.shape) for info in found)
        if rows != {(True, shape[-1])} or count != math.prod(shape):
            continue
        wanted = _HEAD if head is not None and weight is head.weight else kind
        if wanted == "Q4_K" and shape[-1] % BLOCK_FORMATS[wanted][0]:
            wanted = _OTHER
        if shape[-1] % BLOCK_FORMATS[wanted][0] == 0:
            for source in sources:
                del plan[source]
            plan[name] = TensorInfo(wanted, shape), sources
    return plan


def _matrices(model: Any, stored: Mapping[str, TensorInfo]) -> Iterator[tuple[str, Any, list[str]]]:
    """Yield parameters that may be in blocks, and what tensors a checkpoint has of each."""
    from torch import nn

    for path, module in model.named_modules():
        name = f"{path}.weight"
        linear = isinstance(module, nn.Linear) and not _ROUTER.fullmatch(name)
        if linear or module is model.get_input_embeddings():
            yield name, module.weight, [name]
        for part, names in _STACKED.items():
            weight = getattr(module, part, None)
            if not isinstance(weight, nn.Parameter) or getattr(module, "is_transposed", True):
                continue
            if weight.ndim == 3:
                name = f"{path}.{part}"
                yield name, weight, _experts(path, len(weight), names, stored) or [name]


def _experts(
    path: str, count: int, names: Sequence[str], stored: Mapping[str, TensorInfo]
) -> list[str]:
    """Return the tensors that a checkpoint has, expert by expert, for one stacked parameter."""
    for own in (path, path.replace(".mlp.", ".block_sparse_moe.")):  # the latter is Mixtral's
        every = [f"{own}.{i}.{name}.weight" for i in range(count) for name in names]
        if found := [name for name in every if name in stored]:
            return found
    return []


def _contents(
    written: Mapping[str, TensorInfo], sources: Mapping[str, list[Any]], report: Report
) -> Iterator[npt.NDArray[Any]]:
    sizes = {n: sum(t.info.span[1] - t.info.span[0] for t in ts) for n, ts in sources.items()}
    done, total = 0, sum(sizes.values())
    for name, info in written.items():
        if info.dtype in BLOCK_FORMATS:
            blocks = [_blocks(tensor, info.dtype) for tensor in sources[name]]
            yield np.concatenate(blocks).reshape(info.stored[1])
        else:
            [tensor] = sources[name]
            bits = f"u{ITEM_BYTES[info.dtype]}"
            yield tensor.read().numpy().view(bits).reshape(info.shape)
        done += sizes[name]
        report("quantising weights", done, total)


def _blocks(tensor: Any, kind: str) -> npt.NDArray[np.uint8]:
    """Return a stored tensor's rows in blocks. [rows, bytes of a row]"""
    values = tensor[...].flatten(0, -2)
    parts = range(0, len(values), _ROWS)
    blocks = [quantise(values[row : row + _ROWS].float().numpy(), kind) for row in parts]
    if not all(are_numbers(part, kind) for part in blocks):
        raise ModelLoadError(
            f"weights file {tensor.path}: tensor {tensor.name} has values too large for the "
            f"binary16 scales of {kind}"
        )
    return np.concatenate(blocks)
