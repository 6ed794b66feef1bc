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
