"""Whether a model's files stayed as they were while they were read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from detinfer.checkpoint.files import stamp
from detinfer.errors import ModelLoadError

Stamps = Mapping[Path, list[int]]

# What a folder's weights, configuration, tokenizer and templates are in; others may change.
_READ = {".safetensors", ".json", ".jinja", ".txt", ".model"}


def take_stamps(path: Path) -> Stamps:
    """Stamps of a file, or of all files in a folder that loading may read.

    Raises:
        ModelLoadError: one cannot be read.
    """
    return {file: stamp(file) for file in _files(path)}


def check_unchanged(before: Stamps, *paths: Path) -> None:
    """Refuse what was read of files and folders since their stamps were taken, if any has changed.

    Raises:
        ModelLoadError: naming a file that was written, replaced, added or removed.
    """
    found = (file for path in paths for file in _files(path))
    after = {file: stamp(file) if file in before else [] for file in found}
    for file in sorted({*before, *after}):
        if before.get(file) != after.get(file):
            raise ModelLoadError(f"{file}: changed while the model was loaded; start again")


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder in (path, path / "additional_chat_templates"):
        if folder.is_dir():
            yield from (f for f in folder.iterdir() if f.suffix in _READ and f.is_file())
