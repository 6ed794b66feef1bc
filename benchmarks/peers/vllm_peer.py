"""vLLM's CPU build, offline, in one process, in bfloat16, from the model's folder."""

from __future__ import annotations

import os
from typing import Any

from engine import Generate, serve

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GiB


def load(model: str) -> Generate:
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype="bfloat16", enable_prefix_caching=False, max_model_len=2048)

    def generate(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0, detokenize=False)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = llm.generate(asked, params, use_tqdm=False)
        assert all(len(answer.outputs[0].token_ids) == tokens for answer in answers)
        return {}

    return generate


if __name__ == "__main__":
    serve(load)
