"""Replay the Dockerfile in an empty root, then serve and answer from it; needs no Docker engine.

    sudo python tests/docker/replay.py FOLDER [--build-arg NAME=VALUE]…

Needs root, debootstrap and util-linux; takes minutes and leaves a log and a root of a few GB in
FOLDER. Where pip and apt need a mirror, a proxy or a local folder: --mirror, --env and --bind.
Every mount and every process lives in namespaces of its own, so that none outlives the script,
however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from build_context import Ignore, copy_from_context
from chroot import ReplayError, Root
from dockerfile import DockerfileError, Image, Run, build

CONTEXT = Path(__file__).resolve().parents[2]
ISOLATED = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--", sys.executable]
STOP_SECONDS = 40
REQUEST = {"prompt": "The capital of France is", "max_tokens": 16}


def main() -> int:
    """Start anew as the first process of a namespace, then replay."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new one")
    for option, text in (("--build-arg", "as Docker's"), ("--env", "for all commands inside")):
        parser.add_argument(option, type=_pair, action="append", default=[], help=text)
    parser.add_argument("--bind", action="append", default=[], help="a folder, read-only inside")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="of Debian")
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, for chroot and mounts")
    try:
        if os.getpid() != 1:
            os.execvp(ISOLATED[0], [*ISOLATED, *sys.argv])
        _replay(args)
    except (ReplayError, DockerfileError, OSError, subprocess.SubprocessError) as error:
        print(f"replay: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=VALUE")
    return name, value


def _replay(args: argparse.Namespace) -> None:
    folder = args.folder.resolve()
    image = build((CONTEXT / "Dockerfile").read_text(), dict(args.build_arg))
    ignore = Ignore((CONTEXT / ".dockerignore").read_text())
    match = re.fullmatch(r"debian:(\w+)-slim", image.base)
    if match is None:
        raise ReplayError(f"base image: got {image.base}, expected debian:SUITE-slim")
    folder.mkdir(parents=True)
    root = Root(folder / "root", folder / "log", dict(args.env))
    with _step(f"FROM {image.base}: debootstrap"):
        root.make(match[1], args.mirror, args.bind)
    for step in image.steps:
        title = step.command if isinstance(step, Run) else f"COPY {' '.join(step.sources)}"
        with _step(f"line {step.line}: {title[:100]}"):
            if isinstance(step, Run):
                root.logged(root.command(("/bin/sh", "-c", step.command), step))
            else:
                copy_from_context(CONTEXT, ignore, step, root.path)
    _serve(root, image)


@contextlib.contextmanager
def _step(title: str) -> Iterator[None]:
    print(title, flush=True)
    start = time.monotonic()
    yield
    print(f"    {time.monotonic() - start:.1f} s", flush=True)


def _serve(root: Root, image: Image) -> None:
    """Start the image's command, wait for its health check, ask twice, stop it."""
    [port] = image.ports
    check = image.healthcheck
    if check is None:
        raise ReplayError("the image has no HEALTHCHECK")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ReplayError(f"port {port} is in use: stop the other server")
    command = (*image.entrypoint, *image.command)
    healthy = root.command(check.command, image)
    with root.log.open("ab") as output:
        serve = root.command(command, image)
        server = subprocess.Popen(serve, stdout=output, stderr=subprocess.STDOUT)
    try:
        with _step(f"{' '.join(command)}: until healthy"):
            deadline = time.monotonic() + check.start_period
            while not _succeeds(healthy, check.timeout):
                if server.poll() is not None:
                    raise ReplayError(f"exit status {server.returncode}\n{root.tail()}")
                if time.monotonic() > deadline:
                    raise ReplayError(f"not healthy in {check.start_period} s\n{root.tail()}")
                time.sleep(1)
        first, second = _ask(port), _ask(port)
        print(json.dumps({key: first[key] for key in ("text", "digest", "system_fingerprint")}))
        if first["digest"] != second["digest"]:
            raise ReplayError(f"two digests of one request: {first['digest']} {second['digest']}")
        with _step("SIGTERM"):
            server.terminate()
            status = server.wait(STOP_SECONDS)
        if status != 128 + signal.SIGTERM:
            raise ReplayError(f"stopped with {status}, expected {128 + signal.SIGTERM}")
    finally:
        server.kill()
        server.wait()


def _succeeds(command: list[str], seconds: int) -> bool:
    try:
        done = subprocess.run(command, timeout=seconds, stderr=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _ask(port: int) -> dict[str, str]:
    url, headers = f"http://127.0.0.1:{port}/generate", {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(REQUEST).encode(), headers)
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with no_proxy.open(request, timeout=120) as response:
        answer: dict[str, str] = json.load(response)
    return answer


if __name__ == "__main__":
    sys.exit(main())
