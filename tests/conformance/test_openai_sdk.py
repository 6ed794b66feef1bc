"""The ``openai`` SDK, its exceptions, and langchain, which is built on it."""

from __future__ import annotations

import pytest
from model_server import assert_idle, served

pytestmark = pytest.mark.conformance


def test_openai_sdk_completions_chat_streams_and_extensions(server, run_client):
    print(run_client("openai", "openai_client.py", server))


def test_openai_sdk_raises_its_own_exceptions(tmp_path, run_client):
    key = "sk-conformance"
    flags = ["--kv-cache-memory", "64MiB", "--no-fast-mode", "--api-key", key]
    flags += ["--max-queue-size", "0", "--max-num-seqs", "1"]
    with served(tmp_path / "log", *flags) as url:
        print(run_client("openai", "openai_errors_client.py", url, key))
        assert_idle(url, key)


def test_langchain_invokes_streams_and_batches(server, run_client):
    print(run_client("langchain", "langchain_client.py", server))
