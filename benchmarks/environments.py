"""Virtual environments for third-party programs, clients and peers, one each.

Their pins exclude one another and ours: one wants ``huggingface_hub`` below 2 and ``httpx`` below 1
where another, or the server's own transformers, wants newer ones. Apart, each runs exactly as its
users install it, and none can move what the server is tested with.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from detinfer.folders import cache_dir


def environment_python(requirements: Path) -> Path:
    """Return the interpreter of an environment with what a file lists, at pinned versions.

    Kept in the cache folder for as long as the file and the interpreter stay the same.

    Raises:
        RuntimeError: pip could not install it; has pip's own words.
    """
    name = requirements.stem
    key = sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    parent = cache_dir() / "environments"
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{name}-{key}"
    python, complete = folder / "bin" / "python", folder / "complete"
    with FileLock(parent / f"{name}.lock"):
        if not complete.exists():
            started = time.monotonic()
            for older in parent.glob(f"{name}-*"):
                shutil.rmtree(older)
            _run(sys.executable, "-m", "venv", str(folder))
            # The file is the whole closure; wheels only, so that nothing is built or run here.
            _run(
                str(python), "-m", "pip", "install", "--quiet", "--no-deps",
                "--only-binary", ":all:", "--requirement", str(requirements),
            )  # fmt: skip
            complete.touch()
            print(f"{name}: environment made in {time.monotonic() - started:.0f} s")
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
