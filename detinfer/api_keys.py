"""Where a server's API keys come from: flags, a file and the environment."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from detinfer.errors import ConfigError

VARIABLE = "DETINFER_API_KEY"
_MAX_FILE_BYTES = 1 << 20


def collect_api_keys(flags: Sequence[str], file: str | None) -> tuple[str, ...]:
    """Return the keys of all three sources, each once.

    Args:
        flags: values of ``--api-key``.
        file: one key a line; empty lines and lines that begin with ``#`` do not count.

    Raises:
        ConfigError: a key no header can carry, or a file that cannot be read or has no key.
    """
    named = [("--api-key", key) for key in flags]
    if file is not None:
        named += [("--api-key-file", key) for key in _read(file)]
    # Set but empty is how a container's environment says "none".
    if key := os.environ.get(VARIABLE, ""):
        named.append((VARIABLE, key))
    for source, key in named:
        if not key.isascii() or not key.isprintable() or key != key.strip() or not key:
            raise ConfigError(
                f"{source}: expected printable ASCII characters without spaces around them"
            )
    return tuple(dict.fromkeys(key for _, key in named))


def _read(file: str) -> list[str]:
    path = Path(file)
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
            mode = os.fstat(stream.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"--api-key-file: cannot read {file}: {error.strerror}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"--api-key-file: got more than {_MAX_FILE_BYTES} bytes in {file}")
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file: got no key in {file}, expected one a line")
    if os.name == "posix" and mode & stat.S_IROTH:
        print(
            f"detinfer: warning: --api-key-file: every user of this machine can read {file}; "
            f"chmod o-r {file}",
            file=sys.stderr,
        )
    return keys
