"""The ``llm`` command with a schema and with tools: llm_client.py URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MODEL = """\
- model_id: local
  model_name: {model}
  api_base: {url}/v1
  supports_schema: true
  supports_tools: true
"""
OPTIONS = ("-o", "temperature", "0", "-o", "max_tokens", "64", "--no-log", "--key", "none")
FUNCTION = """
def multiply(x: int, y: int) -> int:
    "Multiplies two numbers."
    return x * y
"""


def said(*arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "llm", "-m", "local", *arguments, *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def main(url: str) -> None:
    home = Path(os.environ["HOME"]) / "llm"
    home.mkdir(exist_ok=True)
    os.environ["LLM_USER_PATH"] = str(home)
    described = MODEL.format(model="SmolLM2-135M-Instruct", url=url)
    (home / "extra-openai-models.yaml").write_text(described)
    assert said("Name a city.") == said("Name a city.", "--no-stream")
    city = json.loads(said("--schema", "city, population int", "A city."))
    assert isinstance(city["population"], int)
    # What tools there are is told to the model, which may call them or not.
    assert said("--functions", FUNCTION, "What is 3 times 4?", "--chain-limit", "2")
    assert said("-T", "llm_version", "Which version of llm is this?", "--chain-limit", "2")


if __name__ == "__main__":
    main(sys.argv[1])
