"""The default model says what transformers' own eager binary32 forward says.

With ``--weights dequantized``, which transformers reads too: over its own blocks, as it is served
by default, the model rounds its activations to integers, which transformers does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from default_prompts import PROMPTS
from transformers import AutoModelForCausalLM

from benchmarks.transformers_cache import new_cache
from detinfer import LLM, SamplingParams
from detinfer.batch import Batch
from detinfer.checkpoint.loader import resolve_model

pytestmark = pytest.mark.slow

TOKENS = 64
NEAR_TIE = 1e-3  # logits: what rounding in another order can move


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(weights="dequantized", allow_fast=False)


@pytest.fixture(scope="module")
def eager() -> Any:
    return AutoModelForCausalLM.from_pretrained(
        resolve_model(None, weights="dequantized").folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
    ).eval()


@torch.inference_mode()
def eager_greedy(
    model: Any, prompt: list[int], stop: frozenset[int]
) -> tuple[list[int], list[float]]:
    """Greedy tokens, and by how much each led the runner-up."""
    ids, margins, cache = [], [], new_cache(model)
    step = torch.tensor([prompt])
    while len(ids) < TOKENS and (not ids or ids[-1] not in stop):
        out = model(step, **cache, use_cache=True, logits_to_keep=1)
        best = out.logits[0, -1].topk(2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        step = best.indices[:1].reshape(1, 1)
    return ids, margins


def test_greedy_text_is_transformers_own(llm: LLM, eager: Any) -> None:
    answers = llm.generate(PROMPTS, SamplingParams(max_tokens=TOKENS))
    stop = llm.engine.runner.eos_token_ids
    differing = []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected, margins = eager_greedy(eager, answer.prompt_token_ids, stop)
        if answer.token_ids != expected:
            first = next(
                i
                for i, (a, b) in enumerate(zip(answer.token_ids, expected, strict=False))
                if a != b
            )
            print(f"{prompt!r}: differs at token {first}, margin {margins[first]:.2e}")
            differing.append(margins[first])
    assert len(differing) <= 1, differing
    assert all(margin < NEAR_TIE for margin in differing), differing


def test_logits_are_close_below_position_1024(llm: LLM, eager: Any) -> None:
    tokenizer, runner = llm.engine.tokenizer, llm.engine.runner
    ids = tokenizer("\n\n".join(p * 4 for p in PROMPTS)).input_ids[:1024]
    assert len(ids) == 1024
    with torch.inference_mode():
        expected = eager(torch.tensor([ids])).logits[0].numpy()
    worst = 0.0
    for start in range(0, len(ids), 256):
        rows = np.arange(256, dtype=np.int32)
        batch = Batch(
            input_ids=np.array(ids[start : start + 256], np.int32),
            positions=rows + start,
            query_start=np.array([0, 256], np.int32),
            block_tables=np.arange(16, dtype=np.int32)[None],
            logit_rows=rows,
        )
        worst = max(
            worst, np.abs(runner.forward(batch).numpy() - expected[start : start + 256]).max()
        )
    print(f"max |logit difference| {worst:.2e}")
    assert worst <= 1e-3
