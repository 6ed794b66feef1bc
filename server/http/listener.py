"""The listening socket, taken before anything slow is imported, and room for its connections."""

from __future__ import annotations

import contextlib
import socket

from detinfer.errors import ConfigError


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        ConfigError: port in use, not ours to take, or an unknown host.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host: got {host!r}, expected an address to bind: {error}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Bound but silent sockets may share a port: only listening makes it ours.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--port: cannot listen on {host} port {port}: {error.strerror}; "
            "stop the other server or choose another port"
        ) from None
    return listener


def allow_open_files(wanted: int) -> None:
    """Let this process have so many open files, or as many as the system lets it ask for."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # refused all the same
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
