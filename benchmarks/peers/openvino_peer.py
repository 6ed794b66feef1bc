"""OpenVINO GenAI's continuous batching, from the GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import openvino_genai
from engine import Generate, serve


def load(model: str) -> Generate:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.cache_size = 2  # GiB
    scheduler.max_num_batched_tokens = 2048
    pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU")

    def generate(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        ids = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        answers = pipeline.generate(ids, [config] * len(ids))
        assert all(len(answer.m_generation_ids[0]) == tokens for answer in answers)
        return {}

    return generate


if __name__ == "__main__":
    serve(load)
