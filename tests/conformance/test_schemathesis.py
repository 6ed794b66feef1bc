"""schemathesis makes requests up from ``/openapi.json``, and holds the answers against it."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.conformance


def test_answers_to_made_up_requests_are_as_described(server, run_client):
    module = ("-m", "schemathesis.cli", "--config-file", "schemathesis.toml")
    said = run_client(
        "schemathesis", *module, "run", f"{server}/openapi.json", "--checks", "all", "--no-color"
    )
    # Among it how many refusals were put down to rules that the description cannot state.
    print(said[said.index("= SUMMARY =") :])
