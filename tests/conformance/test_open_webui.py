"""Open WebUI in front of the server, in Chromium.

One chat as it is, whose messages all bring its own tools, and one with a tool that is called.
"""

from __future__ import annotations

import pytest
from conftest import REQUIREMENTS
from model_server import served
from other_servers import started

from benchmarks.environments import environment_python

SETTINGS = {
    "WEBUI_AUTH": "False",
    "WEBUI_SECRET_KEY": "none",
    "ENABLE_OLLAMA_API": "False",
    "OPENAI_API_KEY": "none",
    "RAG_EMBEDDING_ENGINE": "openai",  # or it would fetch a model of its own
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "ANONYMIZED_TELEMETRY": "false",
}


@pytest.mark.heavy
@pytest.mark.parametrize("chat", ["open_webui_client.py", "open_webui_tool_client.py"])
def test_a_chat_is_answered(chat, run_client, tmp_path):
    python = environment_python(REQUIREMENTS / "open_webui.txt")
    command = [str(python.with_name("open-webui")), "serve"]
    with served(tmp_path / "log") as url:
        settings = {**SETTINGS, "OPENAI_API_BASE_URL": f"{url}/v1", "DATA_DIR": str(tmp_path)}
        with started(command, tmp_path / "its log", ready="/health", **settings) as page:
            picture = str(tmp_path / "chat.png")
            print(run_client("open_webui", chat, page, picture), picture)
