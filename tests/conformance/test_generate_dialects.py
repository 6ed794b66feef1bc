"""The clients of Text Generation Inference and of SGLang, unmodified."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("environment", ["huggingface_hub", "text_generation"])
def test_inference_client_generates_text(server, run_client, environment):
    print(run_client(environment, "hub_client.py", server))


def test_text_generation_client_generates_and_streams(server, run_client):
    print(run_client("text_generation", "tgi_client.py", server))


def test_sglang_programs_run(server, run_client):
    print(run_client("sglang", "sglang_client.py", server))


def test_sglang_benchmark_completes_and_gets_the_same_texts_streamed_or_whole(server, run_client):
    streamed, whole = (
        json.loads(run_client("sglang", "sglang_bench_client.py", server, *options))
        for options in ([], ["--disable-stream"])
    )
    for results in (streamed, whole):
        assert results["errors"] == [""] * 6
        assert results["completed"] == 6
        assert results["total_output_tokens"] == sum(results["output_lens"])
    for field in ("input_lens", "output_lens", "generated_texts"):
        assert streamed[field] == whole[field], field
    assert all(streamed["generated_texts"])
    assert all(ttft > 0 for ttft in streamed["ttfts"])
