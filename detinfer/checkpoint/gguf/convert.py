"""GGUF files, converted to a Hugging Face folder: config, weights, tokenizer.

The conversion is our own, not transformers': that needs further packages in some versions, skips
metadata it does not know (RoPE scaling among it) and ignores the pre-tokenizer's name. Here each
key and each tensor of a file is either understood or the reason for a refusal, and the bytes
written depend on nothing but the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detinfer.checkpoint.blocks import are_numbers
from detinfer.checkpoint.folder import one_line
from detinfer.checkpoint.gguf.config import Metadata, read_config
from detinfer.checkpoint.gguf.file import open_gguf
from detinfer.checkpoint.gguf.tensors import hf_name, is_router, restore_layout
from detinfer.checkpoint.gguf.tokenizer import write_json, write_tokenizer
from detinfer.checkpoint.progress import Report, silent
from detinfer.checkpoint.weight_file import TensorInfo, write_weights
from detinfer.errors import ModelLoadError, UnsupportedModelError
from detinfer.kernels.constants import BLOCK_FORMATS

CONVERTER_VERSION = 1
"""Part of the converted folder's name: raise it when the files written would differ."""

FORMAT_FILE = "weight_format.txt"
WEIGHTS_FILE = "model.safetensors"

PACKED = "packed"
"""What a weight format begins with, where blocks are kept."""

_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def convert_gguf(path: Path, folder: Path, report: Report = silent, packed: bool = False) -> None:
    """Write the model in a GGUF file to an empty folder that can be loaded.

    Quantised blocks are dequantised in float32 by GGUF's formulas and rounded once to bfloat16, to
    nearest even. F16 stays F16. F32 becomes bfloat16 where that loses nothing, else it stays F32.

    Args:
        path: the file.
        folder: what to fill; transformers can load it if nothing is ``packed``.
        report: is told how far it is.
        packed: whether the blocks of matrices stay as they are, in the formats served so.

    Raises:
        ModelLoadError: the file cannot be read, or is cut short or damaged.
        UnsupportedModelError: an architecture, key, tensor or tokenizer not known here; named.
    """
    reader = open_gguf(path)
    metadata = Metadata(path, {key: _contents_of(path, reader, key) for key in reader.fields})
    config = read_config(metadata, {str(tensor.name) for tensor in reader.tensors})
    sources = _sources(path, reader)
    written = {
        name: TensorInfo(_storage(name, parts, packed), _shape(path, name, parts))
        for name, parts in sorted(sources.items())
    }
    config["dtype"] = _main_dtype(written)
    _check_against_model(path, config, written)
    ids = write_tokenizer(metadata, config, folder)
    metadata.refuse_unread()

    write_json(folder / "config.json", config | ids)
    write_json(folder / "generation_config.json", ids)
    (folder / FORMAT_FILE).write_text(_describe(written, sources) + "\n")
    write_weights(folder / WEIGHTS_FILE, written, _contents(path, config, written, sources, report))


def round_to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Bits of float32 values rounded to bfloat16, to nearest even, subnormals kept; finite input.

    In integers: some CPUs' conversion instruction flushes subnormals.
    """
    bits = values.view(np.uint32)
    # Adds half a unit, less one when the kept part is even; cannot overflow for finite values.
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + half) >> np.uint32(16)).astype(np.uint16)


def _contents_of(path: Path, reader: Any, key: str) -> Any:
    try:
        return reader.fields[key].contents()
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path}: metadata {key}: holds text that is not UTF-8") from error


def _sources(path: Path, reader: Any) -> dict[str, list[Any]]:
    """Tensors by the name they get: one each, but for experts' gate and up, in that order."""
    sources: dict[str, list[Any]] = {}
    for tensor in sorted(reader.tensors, key=lambda tensor: str(tensor.name)):
        sources.setdefault(hf_name(path, str(tensor.name)), []).append(tensor)
    return sources


def _shape(path: Path, name: str, parts: list[Any]) -> tuple[int, ...]:
    """Shape of a tensor; where it is made of several, their outputs add up."""
    shapes = [tuple(int(n) for n in reversed(part.shape)) for part in parts]
    first = shapes[0]
    if name.endswith("shared_expert_gate.weight") and len(first) == 1:
        return (1, *first)
    if len(parts) == 1:
        return first
    if any(shape != first for shape in shapes) or len(first) != 3:
        last = parts[-1].name
        raise ModelLoadError(
            f"{path}: tensor {last} has shape {list(shapes[-1])}, {parts[0].name} {list(first)}: "
            "expected one shape of 3 dimensions"
        )
    return (first[0], len(parts) * first[1], first[2])


def _storage(name: str, parts: list[Any], packed: bool) -> str:
    """How a tensor is stored: in its blocks, or as wide as its widest part asks for."""
    kinds = {part.tensor_type.name for part in parts}
    if packed and len(kinds) == 1 and len(parts[0].shape) > 1 and not is_router(name):
        [kind] = kinds
        if kind in BLOCK_FORMATS:
            return str(kind)
    stored = {_widened(part) for part in parts}
    return stored.pop() if len(stored) == 1 else "F32"


def _widened(tensor: Any) -> str:
    kind = tensor.tensor_type.name
    if kind == "F16":
        return "F16"
    if kind == "F32":
        narrow = not np.any(tensor.data.view(np.uint32) & np.uint32(0xFFFF))
        return "BF16" if narrow else "F32"
    return "BF16"


def _main_dtype(written: dict[str, TensorInfo]) -> str:
    sizes = dict.fromkeys(_DTYPE_NAMES, 0)
    for info in written.values():
        if info.dtype in sizes:
            sizes[info.dtype] += int(np.prod(info.shape, dtype=np.int64))
    return _DTYPE_NAMES[max(sizes, key=lambda dtype: sizes[dtype])]


def _describe(written: dict[str, TensorInfo], sources: dict[str, list[Any]]) -> str:
    """Name what is kept packed, and what the others are stored as and were made from."""
    packed = sorted({info.dtype for info in written.values()} & BLOCK_FORMATS.keys())
    rest = {name: info.dtype for name, info in written.items() if info.dtype not in packed}
    stored = sorted({_DTYPE_NAMES[dtype] for dtype in rest.values()})
    kinds = sorted({part.tensor_type.name for name in rest for part in sources[name]} - {"F32"})
    text = f"{'+'.join(stored)} from gguf {'+'.join(kinds) or 'F32'}"
    return f"{PACKED} {'+'.join(packed)}, {text}" if packed else text


def _check_against_model(
    path: Path, config: dict[str, Any], written: dict[str, TensorInfo]
) -> None:
    """Compare names and shapes with those of the model that transformers builds from the config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(config["model_type"], **fields)
            )
    except Exception as error:  # its validators raise all kinds
        raise ModelLoadError(
            f"{path}: no model can be made of its metadata: {one_line(error)}"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        expected.pop("lm_head.weight", None)
    for name, shape in expected.items():
        if name not in written:
            raise ModelLoadError(f"{path}: tensor {name} is missing")
        if written[name].shape != shape:
            raise ModelLoadError(
                f"{path}: tensor {name} has shape {list(written[name].shape)}, "
                f"its metadata says {list(shape)}"
            )
    for name in written:
        if name not in expected:
            raise UnsupportedModelError(
                f"{path}: tensor {name} has no place in a {config['model_type']} model"
            )


def _contents(
    path: Path,
    config: dict[str, Any],
    written: dict[str, TensorInfo],
    sources: dict[str, list[Any]],
    report: Report,
) -> Iterator[npt.NDArray[Any]]:
    done, total = 0, sum(int(part.n_bytes) for parts in sources.values() for part in parts)
    for name, info in written.items():
        parts = sources[name]
        read = _blocks if info.dtype in BLOCK_FORMATS else _values
        made = [_as_stored(read(path, part), info.dtype) for part in parts]
        values = made[0] if len(made) == 1 else np.concatenate(made, axis=-2)
        yield restore_layout(config, str(parts[0].name), values.reshape(info.stored[1]))
        done += sum(int(part.n_bytes) for part in parts)
        report("converting weights", done, total)


def _as_stored(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if dtype == "BF16":
        return round_to_bfloat16(values)
    return values.astype(np.float32, copy=False) if dtype == "F32" else values


def _blocks(path: Path, tensor: Any) -> npt.NDArray[Any]:
    """Return a matrix's rows of blocks, as they are stored."""
    blocks = np.ascontiguousarray(tensor.data)
    if not are_numbers(blocks, tensor.tensor_type.name):
        raise ModelLoadError(f"{path}: tensor {tensor.name} has a scale that is NaN or infinity")
    return blocks


def _values(path: Path, tensor: Any) -> npt.NDArray[Any]:
    """Return a tensor's values: F16 as it is, all else in float32."""
    from gguf import dequantize

    kind = tensor.tensor_type.name
    if kind in ("F16", "F32"):
        values = np.ascontiguousarray(tensor.data)
    else:
        try:
            values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{path}: tensor {tensor.name} is stored as {kind}, which is not supported"
            ) from error
    if not np.isfinite(values).all():
        raise ModelLoadError(f"{path}: tensor {tensor.name} holds NaN or infinity")
    return values
