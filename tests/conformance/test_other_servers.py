"""``detinfer check --url`` on unmodified servers of other makes, which read the default model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REQUIREMENTS
from other_servers import started

from benchmarks.environments import environment_python
from benchmarks.peers.__main__ import default_gguf
from detinfer.checkpoint.loader import resolve_model

CHECK_SECONDS = 900


def check(url: str, report: Path, *flags: str) -> dict:
    """What the command finds; a difference is a finding, too."""
    command = [sys.executable, "-m", "detinfer.cli", "check", "--url", url, "--report", str(report)]
    done = subprocess.run(
        [*command, "--seed", "1", *flags],
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS,
    )
    print(done.stdout)
    assert done.returncode in (0, 1), done.stderr
    told = json.loads(report.read_text())
    assert told["reproducible"] is (done.returncode == 0)
    assert told["control"]["possible"] is False
    return told


def exact(told: dict) -> list[float]:
    """The log-probabilities of all answers, as doubles; an answer that ends at once has none."""
    answers = [one["expected"] for one in told["by_mode"]["deterministic"]["prompts"]]
    return [float.fromhex(token["logprob"]) for one in answers for token in one["logprobs"] or ()]


@pytest.mark.heavy
def test_llama_cpp_server(tmp_path):
    python = environment_python(REQUIREMENTS / "llama_cpp_server.txt")
    model = default_gguf(tmp_path)
    # Alone it is asked one token at a time: some builds of it do not survive a prompt of several.
    command = [str(python), "-m", "llama_cpp.server", "--model", str(model), "--n_batch", "1"]
    flags = ("--runs", "4", "--concurrency", "4", "--max-tokens", "6")
    with started([*command, "--logits_all", "true"], tmp_path / "log") as url:
        told = check(url, tmp_path / "a.json", *flags)
        check(url, tmp_path / "b.json", *flags)
    assert told["fingerprint"]["route"] == "/v1/completions"
    told_of = exact(told)
    assert told_of
    assert all(value < 0 for value in told_of)
    assert [rung["name"] for rung in told["ladder"]][:3] == [
        *("repeats alone", "batch sizes", "under load")
    ]
    compared = subprocess.run(
        [sys.executable, "-m", "detinfer.cli", "check", "--compare", "a.json", "b.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert compared.returncode == 0, compared.stdout + compared.stderr


@pytest.mark.conformance
def test_transformers_serve(tmp_path):
    python = environment_python(REQUIREMENTS / "transformers_serve.txt")
    [packages] = python.parents[1].glob("lib/python*/site-packages")
    model = str(resolve_model(weights="dequantized").folder)
    command = [sys.executable, str(Path(sys.executable).with_name("transformers")), "serve", model]
    environment = {"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"}
    with started([*command, "--device", "cpu"], tmp_path / "log", **environment) as url:
        told = check(
            url,
            tmp_path / "r.json",
            *("--runs", "4", "--concurrency", "2", "--max-tokens", "4"),
            *("--prompt", "The capital of France is"),
        )
    assert told["runs"] == 4
    assert told["fingerprint"]["log-probabilities"] in ("told", "not told")
