"""The page, driven in Debian's Chromium against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from model_server import assert_idle, served

pytestmark = pytest.mark.conformance

MODEL = "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of the default model and of a solver."""
    assert Path("/usr/bin/chromium").exists(), "chromium: not found; apt-get install chromium"
    flags = [MODEL, "--solver", "trm-sudoku6", "--kv-cache-memory", "256MiB"]
    with served(tmp_path_factory.mktemp("page") / "log", *flags) as url:
        yield url
        assert_idle(url)


@pytest.mark.parametrize(
    "scenario",
    [
        "chat",
        "completion",
        "injection",
        "side_by_side",
        "check",
        "puzzle",
        "keyboard",
        "narrow",
        "server",
        "docs",
    ],
)
def test_page(both, run_client, scenario):
    run_client("playwright", "page_client.py", both, scenario)


def test_the_key_is_asked_for_and_kept_in_the_tab(tmp_path, run_client):
    key = "sk-of-the-page"
    with served(tmp_path / "log", "--solver", "trm-sudoku6", "--api-key", key) as url:
        run_client("playwright", "page_client.py", url, "key", key)
