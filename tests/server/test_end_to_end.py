from __future__ import annotations

import re
import signal
import subprocess
import sys

import httpx
import pytest

pytestmark = pytest.mark.slow  # loads the default model in a process of its own


def test_served_default_model_answers_and_repeats_its_digest():
    process = subprocess.Popen(
        [sys.executable, "-m", "detinfer.cli", "serve", "--port", "0", "--no-fast-mode"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if ready := re.search(r"ready on (http://\S+)", line):
                break
        else:
            pytest.fail("the server ended before it was ready")
        with httpx.Client(base_url=ready[1], timeout=120) as client:
            body = {"prompt": "The capital of France is", "max_tokens": 16}
            first = client.post("/generate", json=body).json()
            assert "Paris" in first["text"]
            assert len(first["output_ids"]) == 16
            # The same request between two others.
            several = client.post(
                "/generate", json={**body, "prompt": ["Once", body["prompt"], "A b c d e f"]}
            ).json()
            assert several[1]["digest"] == first["digest"]
            _check_openai_routes(client)
            info = client.get("/server_info").json()
            assert info["system_fingerprint"] == first["system_fingerprint"]
            refused = client.post("/generate", json={**body, "deterministic": False})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "deterministic"
            refused = client.post("/generate", json={**body, "max_tokens": 1_000_000})
            assert refused.json()["error"]["code"] == "context_length_exceeded"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
        process.communicate()


def _check_openai_routes(client: httpx.Client) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"messages": question, "max_tokens": 12, "n": 2, "seed": 1, "logprobs": True}
    choices = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert "Paris" in choices[0]["message"]["content"]
    for choice in choices:
        alone = {**body, "n": 1, "seed": choice["seed"]}
        [one] = client.post("/v1/chat/completions", json=alone).json()["choices"]
        assert (one["digest"], one["logprobs"]) == (choice["digest"], choice["logprobs"])
        spelled = b"".join(bytes(token["bytes"]) for token in one["logprobs"]["content"])
        assert spelled.decode().startswith(one["message"]["content"])
    body = {"prompt": "The capital of France is Paris.", "temperature": 0, "max_tokens": 1}
    [scored] = client.post("/v1/completions", json={**body, "echo": True, "logprobs": 1}).json()[
        "choices"
    ]
    tokens = scored["logprobs"]["tokens"]
    assert "".join(tokens[:-1]) == body["prompt"]
    paris = tokens.index(" Paris")
    generated = client.post(
        "/v1/completions", json={**body, "prompt": "The capital of France is", "logprobs": 1}
    ).json()["choices"][0]["logprobs"]
    assert generated["top_logprobs"][0][" Paris"] == scored["logprobs"]["token_logprobs"][paris]
