"""A file a command writes at its end, known to be writable before its long work starts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from detinfer.checkpoint.files import atomic_write
from detinfer.errors import ConfigError


class OutputFile:
    """Where a result goes, whole or not at all.

    Args:
        flag: that named it.
        path: the file.

    Raises:
        ConfigError: it cannot be written there.
    """

    def __init__(self, flag: str, path: str) -> None:
        self._flag, self.path = flag, Path(path)
        if self.path.is_dir():
            raise ConfigError(f"{flag}: {path} is a folder, expected a file")
        try:
            with tempfile.TemporaryFile(dir=self.path.parent):
                pass
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, text: str) -> None:
        """Write the whole file or leave what was there.

        Raises:
            ConfigError: the disk is full, or the folder went away meanwhile.
        """
        try:
            # A lone surrogate in an answer must not cost the result.
            atomic_write(self.path, text.encode("utf-8", "replace"))
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._flag}: {self.path} cannot be written ({error.strerror})")
