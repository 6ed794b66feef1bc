"""Run the suite on the newest or the oldest releases that pyproject.toml admits.

    python tests/releases.py newest
    python tests/releases.py oldest --keep torch triton     # these as in constraints.txt

CI runs on those of constraints.txt. After a run on newer ones, they go there, and the upper bounds
of pyproject.toml follow. A fresh virtual environment is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parents[1]


def requirements() -> Iterator[str]:
    """What pyproject.toml asks for to run the tests, this project itself apart."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    yield from project["dependencies"]
    yield from project["optional-dependencies"]["test"]


def pinned() -> dict[str, str]:
    """The releases of constraints.txt by normalised name."""
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def chosen(which: str, keep: Sequence[str]) -> Iterator[str]:
    """What to tell pip besides the project's own ranges."""
    versions = pinned()
    for requirement in map(Requirement, requirements()):
        name = canonicalize_name(requirement.name)
        marker = f"; {requirement.marker}" if requirement.marker else ""
        if name in keep:
            yield f"{name}=={versions[name]}{marker}"
        elif which == "oldest":
            [lower] = [end.version for end in requirement.specifier if end.operator == ">="]
            yield f"{name}=={lower}{marker}"


def main() -> int:
    """Makes the environment, says what is in it, runs README's tests."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog="All other arguments are pytest's."
    )
    parser.add_argument("which", choices=["newest", "oldest"])
    parser.add_argument("--keep", nargs="+", default=[], metavar="NAME", type=canonicalize_name)
    args, tests = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = [f"{folder}/bin/python", "-m"]
        install = [*python, "pip", "install", "-e", ".[test]", *chosen(args.which, args.keep)]
        subprocess.run(install, cwd=CHECKOUT, check=True)
        subprocess.run([*python, "pip", "freeze"], cwd=CHECKOUT, check=True)
        tests = tests or ["-n", "2", "--dist", "loadfile"]
        return subprocess.run([*python, "pytest", *tests], cwd=CHECKOUT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
