"""transformers' eager forward and argmax over its dynamic cache; ``FOLDER#DTYPE`` is its model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from engine import Generate, serve
from transformers import AutoModelForCausalLM

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks.transformers_cache import new_cache


def load(model: str) -> Generate:
    folder, dtype = model.split("#")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
    ).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        cache = new_cache(loaded)
        ids = torch.tensor(prompts)
        for _ in range(tokens):
            out = loaded(ids, **cache, use_cache=True, logits_to_keep=1)
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
        return {}

    return generate


if __name__ == "__main__":
    serve(load)
