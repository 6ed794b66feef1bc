"""How this machine reaches package indexes, so that a root made on it can do the same.

A build under Docker has the network of its host and nothing else; a replay may run where pip and
apt only work through a mirror, a proxy or a local folder. All of it is asked of apt and pip.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

_PIP_SECTIONS = ("global", "install", ":env:")  # weakest first
_PIP_KEYS = {
    "cert",
    "default-timeout",
    "extra-index-url",
    "find-links",
    "index-url",
    "no-index",
    "proxy",
    "retries",
    "timeout",
    "trusted-host",
}
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_APT_KEYS = re.compile(r'Acquire::(https?::|Check-|Retries|ForceIPv)[\w:.-]* "[^$]*";')
_PUBLIC_MIRROR = "http://deb.debian.org/debian"


@dataclass(frozen=True)
class HostPackages:
    """What a root needs from its host to install packages."""

    mirror: str  # of Debian
    apt_options: str  # lines for a file in apt.conf.d
    environment: dict[str, str]
    folders: list[Path]  # that pip's settings name
    certificates: Path | None


def host_packages(suite: str) -> HostPackages:
    """The settings of this machine's apt and pip."""
    pip = parse_pip_settings(_output(sys.executable, "-m", "pip", "config", "list"))
    certificates = _certificates(pip.pop("cert", ""))
    environment = {f"PIP_{key.upper().replace('-', '_')}": value for key, value in pip.items()}
    for name in _PROXIES:
        for spelling in (name, name.upper()):
            if value := os.environ.get(spelling):
                environment[spelling] = value
    return HostPackages(
        mirror=_mirror(suite),
        apt_options=_apt_options(),
        environment=environment,
        folders=local_folders(
            pip.get("find-links", ""),
            f"{pip.get('index-url', '')} {pip.get('extra-index-url', '')}",
        ),
        certificates=certificates,
    )


def parse_pip_settings(listing: str) -> dict[str, str]:
    """The keys of ``pip config list`` that say where packages come from."""
    settings: dict[str, str] = {}
    found = re.findall(r"^(.+?)\.([\w-]+)=(.*)$", listing, re.MULTILINE)
    for section in _PIP_SECTIONS:
        for name, key, value in found:
            if name == section and key in _PIP_KEYS:
                settings[key] = " ".join(str(ast.literal_eval(value)).split())
    return settings


def local_folders(links: str, indexes: str) -> list[Path]:
    """Folders among pip's locations; of an index the parent, since its pages link beside it."""
    folders = [_local(place) for place in links.split()]
    folders += [folder and folder.parent for folder in map(_local, indexes.split())]
    return sorted({folder for folder in folders if folder and folder.is_dir()} - {Path("/")})


def _local(place: str) -> Path | None:
    url = urlsplit(place)
    absolute = url.scheme in ("", "file") and url.path.startswith("/")
    return Path(unquote(url.path)) if absolute else None


def _mirror(suite: str) -> str:
    """The host's own source of a suite, if it is a Debian that has one."""
    form = "$(ORIGIN) $(RELEASE) $(REPO_URI)"
    for line in _output("apt-get", "indextargets", "--format", form).splitlines():
        if line.startswith(f"Debian {suite} "):
            return line.split()[-1]
    return _PUBLIC_MIRROR


def _apt_options() -> str:
    lines = _output("apt-config", "dump", "Acquire").splitlines()
    return "".join(f"{line}\n" for line in lines if _APT_KEYS.fullmatch(line))


def _certificates(pip_cert: str) -> Path | None:
    names = [pip_cert, *(os.environ.get(name, "") for name in _CERTIFICATES)]
    return next((Path(name) for name in names if name and Path(name).is_file()), None)


def _output(*command: str) -> str:
    """What a command prints; nothing where it is missing or fails, as its settings are then."""
    try:
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
