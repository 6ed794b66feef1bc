"""Programs of Debian, unpacked beside the machine's own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from filelock import FileLock

from detinfer.folders import cache_dir


def unpacked(package: str) -> Path:
    """A folder with the files of a package, without what it depends on; fetched once and kept.

    Raises:
        RuntimeError: apt or dpkg could not; has their own words.
    """
    parent = cache_dir() / "conformance"
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"debian-{package}"
    with FileLock(parent / f"debian-{package}.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _fetch(package, folder)
            [archive] = folder.glob("*.deb")
            _run(folder, "dpkg-deb", "--extract", str(archive), ".")
            archive.unlink()
            (folder / "complete").touch()
    return folder


def _fetch(package: str, folder: Path) -> None:
    try:
        _run(folder, "apt-get", "download", package)
    except RuntimeError:  # a machine that has not read its package lists yet
        _run(folder, "apt-get", "update")
        _run(folder, "apt-get", "download", package)


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
