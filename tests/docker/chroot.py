"""A folder that commands take for their root, as those in a container do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dockerfile import Image, Run

STEP_SECONDS = 1800
_CERTIFICATES = "/etc/host-certificates.pem"


class ReplayError(Exception):
    """The replay could not start, or a step failed."""


class Root:
    """The root at ``path``; what commands print goes to ``log``.

    ``environment`` is of this host, not of the image: how pip and apt reach their indexes.
    """

    def __init__(self, path: Path, log: Path, environment: dict[str, str]) -> None:
        self.path = path
        self.log = log
        self._environment = environment

    def make(self, suite: str, mirror: str, folders: Sequence[str]) -> None:
        """Bootstrap the suite, then mount what Docker mounts and folders of this host."""
        self.logged(["debootstrap", "--variant=minbase", suite, str(self.path), mirror])
        self._mount("proc", "-t", "proc", "proc")
        self._mount("sys", "-t", "sysfs", "-o", "ro", "sysfs")
        self._mount("dev/shm", "-t", "tmpfs", "-o", "size=64m", "tmpfs")
        for folder in folders:
            self._mount(folder, "--bind", folder)
            self._mount(folder, "-o", "remount,bind,ro")
        for name in ("resolv.conf", "hosts"):
            shutil.copy(f"/etc/{name}", self.path / "etc" / name)
        if certificates := os.environ.get("SSL_CERT_FILE"):
            shutil.copy(certificates, self.path / _CERTIFICATES.lstrip("/"))
            for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
                self._environment[name] = _CERTIFICATES

    def command(self, command: Sequence[str], place: Run | Image) -> list[str]:
        """The command line that runs another one inside, with that environment and no other."""
        folder = self.path / place.workdir.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)  # WORKDIR makes it where it is missing
        accounts = (self.path / "etc/passwd").read_text().splitlines()
        homes = {uid: home for _, _, uid, _, _, home, _ in (line.split(":") for line in accounts)}
        home = {"HOME": homes.get(place.user.partition(":")[0], "/")}
        variables = self._environment | home | place.environment
        assignments = [f"{name}={value}" for name, value in variables.items()]
        chroot = ["chroot", f"--userspec={place.user}", "--groups=", str(self.path)]
        return [*chroot, "/usr/bin/env", "-i", f"--chdir={place.workdir}", *assignments, *command]

    def logged(self, command: Sequence[str]) -> None:
        """Run to the end; when it fails, show what it printed last."""
        with self.log.open("ab") as output:
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=STEP_SECONDS,
                check=False,
            ).returncode
        if status != 0:
            raise ReplayError(f"exit status {status}\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])

    def _mount(self, place: str, *arguments: str) -> None:
        target = self.path / place.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *arguments, str(target)], check=True)
