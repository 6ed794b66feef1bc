"""The folders every start writes to: what is fetched and compiled, and temporary files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from detinfer.errors import ConfigError


def cache_dir() -> Path:
    """Return where models and compiled kernels are: $DETINFER_CACHE, else ~/.cache/detinfer."""
    configured = os.environ.get("DETINFER_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "detinfer"


def check_folders() -> None:
    """See that the cache can be written; temporary files go there if they have no other place.

    On a read-only root a writable cache is then all that is needed.

    Raises:
        ConfigError: the cache cannot be written.
    """
    if (problem := cache_problem()) is not None:
        raise ConfigError(problem)
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        folder = cache_dir() / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def cache_problem() -> str | None:
    """Return why the cache folder, or where it would be made, cannot be written; None if it can."""
    folder = cache_dir()
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            return None
    except OSError as error:
        return (
            f"DETINFER_CACHE: cannot write to {folder} ({error.strerror}): set it to a folder that "
            "can be written, such as a mounted volume"
        )


def nearest(folder: Path) -> Path:
    """Return the folder, or its first parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())
