"""litellm's SDK and its proxy in front of the server: litellm_client.py URL."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Literal

import litellm
from openai import OpenAI
from pydantic import BaseModel

MODEL = "SmolLM2-135M-Instruct"
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
FORCED = {"tools": [ADD], "tool_choice": "required", "parallel_tool_calls": False}


class City(BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]


def asked(text: str) -> dict:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 64}


def check_call(calls: list) -> None:
    [call] = calls
    assert call.function.name == "add"
    assert set(json.loads(call.function.arguments)) == {"a", "b"}


def check_sdk(url: str) -> None:
    to = {"api_base": f"{url}/v1", "api_key": "none"}
    for provider in ("openai", "hosted_vllm"):
        model = f"{provider}/{MODEL}"
        whole = litellm.completion(model, **asked("Name a city."), response_format=City, **to)
        City.model_validate_json(whole.choices[0].message.content)
        called = litellm.completion(model, **asked("3 + 4?"), **FORCED, **to)
        check_call(called.choices[0].message.tool_calls)
        chunks = [*litellm.completion(model, **asked("3 + 4?"), **FORCED, stream=True, **to)]
        check_call(litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls)


def check_proxy(url: str) -> None:
    """Ask the proxy, whose one deployment is the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    params = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
    config = Path(os.environ["HOME"]) / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": params}]}))
    command = [str(Path(sys.executable).with_name("litellm")), "--config", str(config)]
    key = f"sk-{secrets.token_hex(32)}"
    proxy = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "LITELLM_MASTER_KEY": key},
    )
    try:
        base = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{base}/health/liveliness")
                break
            except OSError:
                time.sleep(0.5)
        client = OpenAI(base_url=f"{base}/v1", api_key=key)
        for _ in range(3):
            whole = client.chat.completions.create(model=MODEL, **asked("Name a city."))
            assert whole.choices[0].message.content
            answer = client.responses.create(
                model=MODEL, input="Name a city.", temperature=0, max_output_tokens=16
            )
            assert answer.output_text == whole.choices[0].message.content[: len(answer.output_text)]
        called = client.chat.completions.create(model=MODEL, **asked("3 + 4?"), **FORCED)
        check_call(called.choices[0].message.tool_calls)
        [one] = client.embeddings.create(model=MODEL, input="text").data
        assert one.embedding
    finally:
        proxy.terminate()
        proxy.wait()


def main(url: str) -> None:
    check_sdk(url)
    check_proxy(url)


if __name__ == "__main__":
    main(sys.argv[1])
