"""Safetensors files: a look at the header, tensors read into own memory, a writer of equal bytes.

The format is an unsigned 64-bit length, that many bytes of JSON, and the tensors' bytes:
https://github.com/huggingface/safetensors#format. Quantised blocks are bytes to it, [rows, bytes of
a row]; its metadata has the name of their format under the tensor's name.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detinfer.checkpoint.blocks import row_bytes
from detinfer.errors import ModelLoadError
from detinfer.kernels.constants import BLOCK_FORMATS

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "BOOL": 1}
ITEM_BYTES |= {"U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8}
_MAX_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        dtype: as safetensors spells it: ``BF16``; of blocks, their format: ``Q4_1``.
        shape: of the values.
        span: the bytes of the file it takes, first and one past the last; empty if not in one.
    """

    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int] = field(default=(0, 0), compare=False)

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """What safetensors takes it for: its dtype and shape; blocks are bytes."""
        if self.dtype not in BLOCK_FORMATS:
            return self.dtype, self.shape
        return "U8", (*self.shape[:-1], row_bytes(self.dtype, self.shape[-1]))


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes of a file's tensors, after checking that the file is whole.

    Raises:
        ModelLoadError: the file cannot be read, is no safetensors file, or is cut short.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if size < 8 or length > _MAX_HEADER:
                raise ModelLoadError(f"weights file {path}: not a safetensors file")
            if 8 + length > size:
                raise ModelLoadError(
                    f"weights file {path} is truncated: its header takes {8 + length} bytes, file "
                    f"has {size}"
                )
            text = file.read(length)
    except OSError as error:
        raise ModelLoadError(f"weights file {path}: cannot be read ({error.strerror})") from error
    try:
        tensors, end = _parse(json.loads(text, object_pairs_hook=_unique), 8 + length)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelLoadError(
            f"weights file {path}: its safetensors header cannot be parsed"
        ) from error
    expected = end
    if size != expected:
        problem = "is truncated" if size < expected else "is damaged"
        raise ModelLoadError(
            f"weights file {path} {problem}: header says {expected} bytes, file has {size}"
        )
    return tensors


def write_weights(
    path: Path,
    tensors: dict[str, TensorInfo],
    contents: Iterable[npt.NDArray[Any]],
) -> None:
    """Write one safetensors file, holding one tensor in memory at a time.

    Args:
        path: file to make.
        tensors: what will be written, in order.
        contents: each tensor's values in that order; bf16 as its bits, in ``uint16``, blocks as
            rows of bytes.
    """
    formats = {name: info.dtype for name, info in tensors.items() if info.dtype in BLOCK_FORMATS}
    header: dict[str, object] = {"__metadata__": {"format": "pt", **formats}}
    end = 0
    for name, info in tensors.items():
        dtype, shape = info.stored
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[dtype]
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, info), values in zip(tensors.items(), contents, strict=True):
            dtype, shape = info.stored
            if values.shape != shape or values.itemsize != ITEM_BYTES[dtype]:
                raise AssertionError(f"{name}: {values.shape} {values.dtype} is not {info}")
            # Written by write(), not tofile(): that turns a full disk into a vague message.
            file.write(np.ascontiguousarray(values).data)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _parse(header: dict[str, Any], start: int) -> tuple[dict[str, TensorInfo], int]:
    """Tensors by name, in the order of their bytes, which must leave no gap; where those end."""
    tensors = {}
    formats = header.pop("__metadata__", None) or {}
    for name, entry in header.items():
        shape = tuple(int(d) for d in entry["shape"])
        begin, end = (start + int(offset) for offset in entry["data_offsets"])
        info = TensorInfo(str(entry["dtype"]), shape, (begin, end))
        size = ITEM_BYTES.get(info.dtype)  # other dtypes are refused by whoever wants their values
        if min(shape, default=0) < 0 or (
            size is not None and end - begin != int(np.prod(shape, dtype=object)) * size
        ):
            raise ValueError("a tensor's bytes are not those of its shape")
        kind = formats.get(name)
        tensors[name] = _of_blocks(info, kind) if kind in BLOCK_FORMATS else info
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].span))
    end = start
    for info in tensors.values():
        if info.span[0] != end or info.span[1] < end:
            raise ValueError("tensors overlap or leave a gap")
        end = info.span[1]
    return tensors, end


def _of_blocks(info: TensorInfo, kind: str) -> TensorInfo:
    """Return the tensor of values whose blocks ``info`` has as bytes."""
    (values, size), (*rows, row) = BLOCK_FORMATS[kind], info.shape
    if info.dtype != "U8" or row % size:
        raise ValueError("a tensor's bytes are no whole blocks")
    return TensorInfo(kind, (*rows, row // size * values), info.span)
