"""Clients that generators make of ``/openapi.json`` compile, and call every route."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.conformance

ROUTES = "28 routes called"


def test_openapi_python_client(server, run_client, tmp_path):
    said = run_client("openapi_generators", "python_generated.py", server, str(tmp_path))
    assert ROUTES in said


def test_openapi_typescript(server, run_client, npm_folder):
    folder = npm_folder("typescript")
    said = run_client("openapi_generators", "typescript_generated.py", server, str(folder))
    assert ROUTES in said
