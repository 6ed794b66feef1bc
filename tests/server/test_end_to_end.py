from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import httpx
import pytest
from model_server import served

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


def _command(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "detinfer.cli", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return done.returncode, re.sub(r" in [0-9.]+ s", "", done.stdout)


def test_a_receipt_over_http_is_the_commands_own_and_each_verifies_the_others(tmp_path):
    prompt = "The capital of France is"
    sampling = {"max_tokens": 16, "temperature": 0.7, "seed": 3}
    flags = [one for k, v in sampling.items() for one in (f"--{k.replace('_', '-')}", str(v))]
    own, file, wrong = (tmp_path / name for name in ("own.json", "told.json", "wrong.json"))
    assert _command("generate", "-p", prompt, *flags, "--receipt", str(own))[0] == 0
    with served(tmp_path / "log", "--no-fast-mode") as url, httpx.Client(base_url=url) as client:
        client.timeout = 120
        told = client.post("/generate", json={"prompt": prompt, "receipt": True, **sampling}).json()
        assert told["receipt"] == json.loads(own.read_text())
        body = {"prompt": prompt, "receipt": True, "stream": True, **sampling}
        [*_, last, done] = client.post("/v1/completions", json=body).text.strip().split("\n\n")
        assert done == "data: [DONE]"
        [choice] = json.loads(last.removeprefix("data: "))["choices"]
        assert choice["receipt"] == told["receipt"]
        verdict = client.post("/verify", json=told["receipt"]).json()
        assert (verdict["match"], verdict["tokens"]) == (True, 16)
        file.write_text(json.dumps(told["receipt"]))
        forged = json.loads(own.read_text())
        forged["answer"]["token_ids"][4] += 1
        wrong.write_text(json.dumps(forged))
        holds, not_so = (_command("verify", str(one), "--url", url) for one in (file, wrong))
    assert holds == _command("verify", str(file))
    assert holds == (0, "holds: 16 tokens, each with its checksum, not signed\n")
    assert not_so == _command("verify", str(wrong))
    assert not_so[0] == 1
    assert "seal: " in not_so[1]


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
