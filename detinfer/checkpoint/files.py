"""Hashes of large files, remembered; and what an operating-system error means for a user."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from detinfer.errors import ConfigError, ModelLoadError
from detinfer.folders import cache_dir

_CHUNK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


def sha256_file(path: Path, report: Callable[[int], None] = lambda done: None) -> str:
    """SHA-256 of a file's bytes, in hex; ``report`` is told the bytes read so far.

    Raises:
        ModelLoadError: the file cannot be read.
    """
    digest, done = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                report(done)
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def cached_sha256(path: Path) -> str:
    """Like ``sha256_file``, but read again only when the file's stamp has changed.

    Answers are kept under the cache folder, so
    that a model folder may be read-only; failing to keep one is no error.
    """
    known = _read_json(_record_path(path))
    if known is not None and known.get("stamp") == stamp(path):
        return str(known["sha256"])
    # The stamp is taken before reading: a write meanwhile must not be covered by it.
    before = stamp(path)
    digest = sha256_file(path)
    _keep_sha256(path, before, digest)
    return digest


def stamp(path: Path) -> list[int]:
    """Return what changes when a file is written or replaced: inode, size, mtime and ctime in ns.

    Raises:
        ModelLoadError: there is no such file, or it cannot be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror})") from error
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def remember_sha256(path: Path, digest: str) -> None:
    """Record the hash of a file that was hashed while it was written."""
    _keep_sha256(path, stamp(path), digest)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old bytes or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Make a file's contents, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` met while writing the cache into one clear line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise ModelLoadError(
                f"cache folder {folder}: no disk space left ({reason}); free some, or set "
                "DETINFER_CACHE to a folder that has more"
            ) from error
        if error.errno in _UNWRITABLE:
            raise ConfigError(
                f"cache folder {folder}: cannot be written ({reason}); set DETINFER_CACHE to a "
                "folder that can"
            ) from error
        raise ModelLoadError(f"cache folder {folder}: {reason}") from error


def _record_path(path: Path) -> Path:
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return cache_dir() / "hashes" / f"{key[:32]}.json"


def _keep_sha256(path: Path, seen: list[int], digest: str) -> None:
    record = _record_path(path)
    text = json.dumps({"path": str(path), "stamp": seen, "sha256": digest})
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(record, text.encode(errors="surrogateescape"))


def _read_json(path: Path) -> dict[str, object] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
