"""Replay the Dockerfile in an empty root, then serve and answer from it; needs no Docker engine.

    sudo python tests/docker/replay.py FOLDER [--build-arg NAME=VALUE]… [--keep]

Needs root, debootstrap and util-linux; takes minutes and a few GB in FOLDER. Every mount and every
process lives in namespaces of its own, so that none outlives the script, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from build_context import Ignore, copy_from_context
from chroot import ReplayError, Root, tail
from dockerfile import Build, Copy, DockerfileError, Image, MakeFolder, Run, parse
from host_packages import host_packages

CONTEXT = Path(__file__).resolve().parents[2]
TOOLS = ("debootstrap", "unshare", "setpriv", "chroot", "mount")
STOP_SECONDS = 40
REQUEST = {"prompt": "The capital of France is", "max_tokens": 16}
_INSIDE = "DETINFER_REPLAY_INSIDE"


def main() -> int:
    """Replay in namespaces of its own, then remove what was made."""
    args = _arguments()
    try:
        if os.environ.get(_INSIDE):
            _replay(args.folder, args.build_args)
            return 0
        return _isolated(args.folder, keep=args.keep)
    except (ReplayError, DockerfileError, OSError, subprocess.SubprocessError) as error:
        print(f"replay: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=lambda path: Path(path).resolve(), help="new or empty")
    parser.add_argument("--build-arg", dest="build_args", action="append", default=[])
    parser.add_argument("--keep", action="store_true", help="leave the root and the logs there")
    return parser.parse_args()


def _isolated(folder: Path, *, keep: bool) -> int:
    """Run this script again where its mounts and children die with it."""
    if os.geteuid() != 0:
        raise ReplayError("needs root, for chroot and mounts")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise ReplayError(f"{tool} not found: apt-get install debootstrap util-linux")
    if folder.exists() and any(folder.iterdir()):
        raise ReplayError(f"{folder}: expected a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    isolate = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]
    isolate += ["--kill-child", "--propagation", "private", "--"]
    try:
        again = [*isolate, sys.executable, *sys.argv]
        status = subprocess.run(again, env=os.environ | {_INSIDE: "1"}, check=False).returncode
        if status == 0:
            # Out here the host's folders are not mounted there any more.
            subprocess.run(["du", "-sh", folder / "root"], check=True)
        return status
    finally:
        if not keep:
            shutil.rmtree(folder)


def _replay(folder: Path, build_args: Sequence[str]) -> None:
    if bad := [pair for pair in build_args if "=" not in pair]:
        raise ReplayError(f"--build-arg: got {bad[0]!r}, expected NAME=VALUE")
    overrides = dict(pair.split("=", 1) for pair in build_args)
    build = Build(parse((CONTEXT / "Dockerfile").read_text()), overrides)
    ignore = Ignore((CONTEXT / ".dockerignore").read_text())
    match = re.fullmatch(r"debian:(\w+)-slim", build.image.base)
    if match is None:
        raise ReplayError(f"base image: got {build.image.base}, expected debian:SUITE-slim")
    host = host_packages(match[1])
    root = Root(folder / "root", folder / "logs", host)
    with _step(f"FROM {build.image.base}: debootstrap"):
        root.make(match[1])
    for number, step in enumerate(build.steps, 1):
        source = step.instruction
        title = f"{source.keyword} {source.text}"
        with _step(f"[{number}/{len(build.steps)}] line {source.line}: {title[:100]}"):
            if isinstance(step, Run):
                root.run(step, f"line-{source.line}.log")
            elif isinstance(step, Copy):
                copy_from_context(CONTEXT, ignore, step, root.path)
            elif isinstance(step, MakeFolder):
                (root.path / step.path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    _serve(root, build.image)


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
    place = (image.environment, image.workdir, image.user)
    serve = root.command((*image.entrypoint, *image.command), *place)
    healthy = root.command(check.command, *place)
    log = root.log("serve.log")
    with log.open("wb") as output:
        server = subprocess.Popen(serve, stdout=output, stderr=subprocess.STDOUT)
    try:
        with _step(f"{' '.join((*image.entrypoint, *image.command))}: until healthy"):
            deadline = time.monotonic() + check.start_period
            while not _succeeds(healthy, check.timeout):
                if server.poll() is not None:
                    raise ReplayError(f"exit status {server.returncode}\n{tail(log)}")
                if time.monotonic() > deadline:
                    raise ReplayError(f"not healthy in {check.start_period} s\n{tail(log)}")
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
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Content-Type": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", "/generate", json.dumps(REQUEST), headers)
        response = connection.getresponse()
        body = response.read().decode()
    if response.status != 200:
        raise ReplayError(f"/generate: {response.status} {body}")
    answer: dict[str, str] = json.loads(body)
    return answer


if __name__ == "__main__":
    sys.exit(main())
