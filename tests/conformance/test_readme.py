"""README's code blocks, run as they are written, one after the other, in a fresh checkout.

Only the port moves (8000 may be taken), and the checks' 1,000 and 20 runs become 10 and 3. The test
command is the one that CI runs, and Docker's are replayed by ``tests/docker``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from model_server import START_SECONDS

pytestmark = pytest.mark.conformance
ROOT = Path(__file__).parents[2]


README = (ROOT / "README.md").read_text()


class Block(NamedTuple):
    language: str
    code: str


BLOCKS = [
    Block(*found)
    for found in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
]


def one(language: str, mark: str) -> str:
    """The one block of that language that has ``mark`` in it."""
    [code] = [block.code for block in BLOCKS if block.language == language and mark in block.code]
    return code


SERVE = one("bash", "detinfer serve\n")
GENERATE = one("bash", "/generate")
ANSWER = one("json", "digest")
CHECK = one("bash", "detinfer check")
PYTHON = one("python", "LLM()")
OPENAI = one("python", "openai")
CHAT = one("bash", "/v1/chat/completions")
SOLVE = one("bash", "detinfer solve")
WORKFLOW = one("yaml", "detinfer check")


def test_no_block_is_left_out():
    elsewhere = [one("bash", "pytest"), one("bash", "docker run")]
    here = [SERVE, GENERATE, ANSWER, CHECK, PYTHON, OPENAI, CHAT, SOLVE, WORKFLOW]
    assert sorted(block.code for block in BLOCKS) == sorted(here + elsewhere)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git tracks, as it stands in the index, and nothing else."""
    folder = tmp_path_factory.mktemp("checkout")
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={folder}/"], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def shell(checkout: Path, port: int):
    """Runs a block in bash; gives its exit status and what it printed."""

    def run(code: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code.replace("127.0.0.1:8000", f"127.0.0.1:{port}")],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def server(checkout: Path, port: int) -> Iterator[None]:
    """README's first command, from nothing to a server that answers."""
    log = checkout / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", f"{SERVE.strip()} --port {port}"],
            cwd=checkout, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 2 * START_SECONDS
        while "ready on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def stated(answer: str) -> dict[str, object]:
    """The fields that README shows whole; those with an ellipsis are only named."""
    return {
        name: json.loads(value)
        for name, value in re.findall(r'"(\w+)": ("[^"]*"|\[[^\]]*\]|\w+)', answer)
        if "…" not in value
    }


def test_the_first_answer(server, shell):
    status, output = shell(GENERATE)
    answer = json.loads(output)
    expected = stated(ANSWER)
    assert status == 0
    assert {"text", "digest", "system_fingerprint", "deterministic"} <= expected.keys()
    assert {name: answer.get(name) for name in expected} == expected
    # Values with an ellipsis: as far as they are shown.
    assert answer["output_ids"][:2] == [7042, 30]
    assert answer["id"].startswith("gen-")


def test_the_puzzle_is_solved_as_readme_says(server, shell):
    [told] = re.findall(r"solved in 2 steps, with the digest `(\w+)…`", README)
    status, output = shell(SOLVE)
    assert status == 0
    assert "solved in 2 steps" in output
    assert f"digest {told}" in output


def test_the_chat_by_curl_and_by_openais_client_have_the_digest_that_readme_names(
    server, shell, port, run_client
):
    [digest] = re.findall(r"Both print the digest `(\w+)…`", README)
    status, output = shell(CHAT)
    choice = json.loads(output)["choices"][0]
    assert (status, choice["digest"][: len(digest)]) == (0, digest)
    code = OPENAI.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    printed = run_client("openai", "-c", code)
    assert choice["message"]["content"] in printed
    assert f"{choice['digest']} True" in printed


def test_python(server, shell):
    (status, output) = shell(f".venv/bin/python - <<'PYTHON'\n{PYTHON}PYTHON")
    assert status == 0, output
    assert re.search(r"\w.* [0-9a-f]{64}$", output, re.DOTALL), output


def test_the_check_and_its_exit_status(server, shell):
    deterministic, fast = re.findall(r"^\.venv/bin/detinfer check .*$", CHECK, re.MULTILINE)
    assert "--runs 1000 " in deterministic
    status, output = shell(deterministic.replace("--runs 1000", "--runs 10"))
    assert status == 0, output
    assert "--runs 20 " in fast
    status, output = shell(fast.replace("--runs 20", "--runs 3"))
    assert status in (0, 1), output  # whether three runs of PyTorch's kernels differ is luck


def test_the_workflow_has_the_same_commands(server, shell):
    install, check = re.findall(r"run: (.*)$", WORKFLOW, re.MULTILINE)
    assert SERVE.startswith(install)
    status, output = shell(check.replace("--runs 1000", "--runs 10"))
    assert status == 0, output
