"""A folder that commands take for their root, as those in a container do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dockerfile import Run
from host_packages import HostPackages

STEP_SECONDS = 1800


class ReplayError(Exception):
    """The replay could not start, or a step failed."""


class Root:
    """A folder that commands take for their root, as containers do."""

    def __init__(self, path: Path, logs: Path, host: HostPackages) -> None:
        self.path = path
        self._logs = logs
        self._host = host
        self._environment = dict(host.environment)
        logs.mkdir()

    def make(self, suite: str) -> None:
        """Bootstrap the suite, then mount what Docker mounts and what the host's pip reads."""
        bootstrap = ["debootstrap", "--variant=minbase", suite, str(self.path), self._host.mirror]
        self._logged(bootstrap, "debootstrap.log")
        for kind, place, options in (
            ("proc", "proc", "rw"),
            ("sysfs", "sys", "ro"),
            ("tmpfs", "dev/shm", "size=64m"),
        ):
            (self.path / place).mkdir(exist_ok=True)
            _mount("-t", kind, "-o", options, kind, str(self.path / place))
        for folder in self._host.folders:
            inside = self.path / str(folder).lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            _mount("--bind", str(folder), str(inside))
            _mount("-o", "remount,bind,ro", str(inside))
        for name in ("resolv.conf", "hosts"):
            shutil.copy(f"/etc/{name}", self.path / "etc" / name)
        (self.path / "etc/apt/apt.conf.d/99host").write_text(self._host.apt_options)
        if self._host.certificates:
            shutil.copy(self._host.certificates, self.path / "etc/host-certificates.pem")
            for variable in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
                self._environment[variable] = "/etc/host-certificates.pem"

    def run(self, step: Run, log: str) -> None:
        """One RUN; its output goes to a log, whose end is shown when it fails."""
        self._logged(self.command(step.command, step.environment, step.workdir, step.user), log)

    def command(
        self, command: Sequence[str], environment: Mapping[str, str], workdir: str, user: str
    ) -> list[str]:
        """The command line that runs another one inside, with that environment and no other."""
        uid, gid, home = self._account(user)
        variables = self._environment | {"HOME": home} | dict(environment)
        assignments = [f"{name}={value}" for name, value in variables.items()]
        chroot = ["chroot", f"--userspec={uid}:{gid}", "--groups=", str(self.path)]
        return [*chroot, "/usr/bin/env", "-i", f"--chdir={workdir}", *assignments, *command]

    def log(self, name: str) -> Path:
        """Where the output of a step goes."""
        return self._logs / name

    def _account(self, user: str) -> tuple[int, int, str]:
        """The numbers and home of ``name``, ``uid`` or ``uid:gid``, from the root's own list."""
        name, _, group = user.partition(":")
        for line in (self.path / "etc/passwd").read_text().splitlines():
            login, _, uid, gid, _, home, _ = line.split(":")
            if name in (login, uid):
                return int(uid), int(group or gid), home
        raise ReplayError(f"USER {user}: no such account in the image")

    def _logged(self, command: list[str], name: str) -> None:
        log = self.log(name)
        with log.open("wb") as output:
            try:
                status = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=STEP_SECONDS,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                raise ReplayError(f"not done in {STEP_SECONDS} s\n{tail(log)}") from None
        if status != 0:
            raise ReplayError(f"exit status {status}\n{tail(log)}")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
