"""A GGUF file opened: what is not whole, or means something else, is refused before it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from detinfer.errors import ModelLoadError, UnsupportedModelError


def check_magic(path: Path) -> None:
    """Refuse a file that does not begin as GGUF files do.

    Raises:
        ModelLoadError: it cannot be read, or is something else under that name.
        UnsupportedModelError: a version or byte order that is not read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror})") from error
    if (magic := head[:4]) != b"GGUF":
        raise ModelLoadError(f"{path}: not a GGUF file: it begins with {magic!r}, expected b'GGUF'")
    version = int.from_bytes(head[4:], "little")
    if len(head) == 8 and version and not version & 0xFFFF:
        raise UnsupportedModelError(
            f"{path}: a GGUF file of big-endian numbers, which is not supported: convert it with "
            "`gguf-convert-endian FILE little`"
        )
    if len(head) == 8 and version not in (2, 3):
        raise UnsupportedModelError(
            f"{path}: GGUF version {version}, expected 2 or 3: convert the model again"
        )


def open_gguf(path: Path) -> Any:
    """Return gguf's reader of a file whose tensors each have bytes of their own in it.

    Raises:
        ModelLoadError: it cannot be read, is cut short or damaged; a tensor is named.
        UnsupportedModelError: a version or byte order that is not read.
    """
    check_magic(path)
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f"{path}: reading GGUF files needs the package gguf: pip install gguf"
        ) from error

    def build(reader: Any, start: int, fields: list[Any]) -> None:
        _check_places(path, reader, int(start), fields)
        GGUFReader._build_tensors(reader, start, fields)

    try:
        return type("Reader", (GGUFReader,), {"_build_tensors": build})(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelLoadError(
            f"{path}: not a whole GGUF file, truncated or damaged ({reason})"
        ) from error


def _check_places(path: Path, reader: Any, start: int, fields: list[Any]) -> None:
    """Check that rows are whole blocks, and that tensors fill the file, one after another."""
    from gguf import GGML_QUANT_SIZES

    sizes = {kind.value: size for kind, size in GGML_QUANT_SIZES.items()}
    places = []
    for field in fields:
        shape, [kind], [offset] = (part.tolist() for part in field.parts[3:])
        if kind not in sizes:
            raise UnsupportedModelError(
                f"{path}: tensor {field.name} is stored in format {kind}, which is not known here"
            )
        values, size = sizes[kind]
        if shape and shape[0] % values:
            raise ModelLoadError(
                f"{path}: tensor {field.name} has rows of {shape[0]} values, which are no whole "
                f"blocks of {values}"
            )
        count = int(np.prod(shape, dtype=object))
        places.append((start + offset, count // values * size, field.name))
    whole, step = reader.data.size, int(reader.alignment)
    end, before = start, "the header"
    for begin, size, name in sorted(places):
        if begin < end:
            raise ModelLoadError(f"{path}: tensor {name} begins within the bytes of {before}")
        if begin + size > whole:
            raise ModelLoadError(
                f"{path}: not a whole GGUF file, truncated or damaged (tensor {name} ends at byte "
                f"{begin + size}, the file at {whole})"
            )
        if begin - end >= step:
            raise ModelLoadError(
                f"{path}: tensor {name} begins at byte {begin}, but {before} ends at {end}: "
                "expected no gap"
            )
        end, before = begin + size, f"tensor {name}"
    if whole - end >= step:
        raise ModelLoadError(
            f"{path}: {before} ends at byte {end}, the file at {whole}: expected no bytes after it"
        )
