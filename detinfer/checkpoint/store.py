"""Folders that are built once, in the cache, and are either whole or not there.

A folder is built beside its final place, written to disk, listed in a manifest and renamed. Two
processes take turns by a file lock, which the system releases when its holder dies; what a killed
build left behind is removed by the next one.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from detinfer.checkpoint.files import (
    cache_errors,
    cached_sha256,
    remember_sha256,
    sha256_file,
    sync,
)
from detinfer.errors import ModelLoadError

MANIFEST = "manifest.json"

_log = logging.getLogger(__name__)


def build_once(folder: Path, build: Callable[[Path], None], what: str) -> None:
    """Make ``folder`` whole: return at once if it is, else have ``build`` fill a new one.

    Args:
        folder: final place; its parent is made if needed.
        build: writes flat files into the empty folder it is given.
        what: how messages name the contents.

    Raises:
        ModelLoadError: no disk space, or whatever ``build`` raises.
        ConfigError: the cache folder cannot be written.
    """
    if find_damage(folder) is None:
        return
    with cache_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("%s: another process is preparing it; waiting", what)
            lock.acquire()
        try:
            # Looked at again: the other process may have built it meanwhile.
            if (damage := find_damage(folder)) is not None:
                _build(folder, build, what, damage)
        finally:
            lock.release()


def find_damage(folder: Path) -> str | None:
    """Return what keeps ``folder`` from being whole, in one phrase; None if nothing.

    Contents are compared by SHA-256, read again only for files whose stamp has changed.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in listed.items()}
    except FileNotFoundError:
        return "it is not there" if not folder.exists() else f"{MANIFEST} is missing"
    except NotADirectoryError:
        return "it is not a folder"
    except (ValueError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be parsed"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
        if cached_sha256(path) != digest:
            return f"{name} has other contents than were written"
    return None


def _build(folder: Path, build: Callable[[Path], None], what: str, damage: str) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.parent / f".{folder.name}.partial-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        build(temporary)
        digests = _seal(temporary)
        if folder.is_symlink() or folder.is_file():
            raise ModelLoadError(f"{folder}: expected a folder here; remove it and try again")
        if folder.exists():
            _log.warning("%s: the copy in the cache is damaged (%s); rebuilt", what, damage)
            folder.rename(temporary.with_name(f"{temporary.name}-old"))
        temporary.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(temporary.with_name(f"{temporary.name}-old"), ignore_errors=True)
    for name, digest in digests.items():
        remember_sha256(folder / name, digest)


def _seal(folder: Path) -> dict[str, str]:
    """Write every file through to the disk and the manifest last, and return name -> SHA-256."""
    paths = sorted(folder.iterdir())
    for path in paths:
        sync(path)
    digests = {path.name: sha256_file(path) for path in paths}
    listed = {path.name: [path.stat().st_size, digests[path.name]] for path in paths}
    (folder / MANIFEST).write_text(json.dumps(listed, indent=1) + "\n")
    sync(folder / MANIFEST)
    sync(folder)
    return digests
