"""Compiled kernels on disk: a file for each, which is checked before it is run.

Numba's own cache believes its files: one that was cut short ends every start with a traceback, and
one with a flipped bit runs. Here a file begins with a SHA-256 of what it was compiled from and of
the rest of it. Whatever it does not fit is dropped and compiled anew; all that can be lost is time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import secrets
import sys
import time
from pathlib import Path

from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

_SIZE = hashlib.sha256().digest_size
_ABANDONED = 3600  # seconds after which nobody is still writing a file


class KernelCache(_Cache):  # type: ignore[misc]
    """What Numba asks of the cache of one function.

    Args:
        function: what is compiled.
        folder: of its files; its name tells compilers, CPU and sources apart.
    """

    def __init__(self, function, folder: Path) -> None:
        self._function, self._folder = function, folder

    @property
    def cache_path(self) -> str:
        return str(self._folder)

    def load_overload(self, sig, target_context):
        """Return the kernel compiled for a signature, or None if it has to be."""
        target_context.refresh()
        key = self._key(sig, target_context.codegen())
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return _say(f"{path}: cannot be read ({error.strerror}): compiling anew")
        if content[:_SIZE] != _checksum(key, content[_SIZE:]):
            with contextlib.suppress(OSError):
                path.unlink()
            return _say(f"{path}: damaged kernel, dropped: compiling anew")
        return CompileResult._rebuild(target_context, *pickle.loads(content[_SIZE:]))

    def save_overload(self, sig, data) -> None:
        """Keep a kernel; without a place to keep it the next start compiles again."""
        assert not data.library.has_dynamic_globals, "the code holds addresses of this process"
        key = self._key(sig, data.codegen)
        path, content = self._path(key), dumps(data._reduce())
        part = path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _sweep(self._folder)
            part.write_bytes(_checksum(key, content) + content)
            os.replace(part, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            _say(f"{path}: kernel cannot be kept ({error.strerror}): the next start compiles again")

    def _key(self, sig, codegen) -> bytes:
        code = self._function.__code__
        named = self._function.__module__, code.co_code, code.co_names
        return repr((sig, codegen.magic_tuple(), *named)).encode()

    def _path(self, key: bytes) -> Path:
        name = f"{self._function.__module__.rpartition('.')[2]}.{self._function.__name__}"
        return self._folder / f"{name}-{hashlib.sha256(key).hexdigest()[:16]}.kernel"

    def enable(self) -> None:
        """Stay on."""

    def disable(self) -> None:
        """Stay on."""

    def flush(self) -> None:
        """Files of other sources are in other folders."""


@functools.cache
def _sweep(folder: Path) -> None:
    """Remove what writers left who were killed, once a process."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _ABANDONED:
                part.unlink()


def _checksum(key: bytes, content: bytes) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(content)
    return digest.digest()


def _say(line: str) -> None:
    print(f"detinfer: {line}", file=sys.stderr, flush=True)
