"""llama.cpp's logits of a whole window, and its quantiser; runs in its own environment.

llama_cpp_logits.py MODEL                            a peer: see benchmarks/peers/engine.py
llama_cpp_logits.py quantize SOURCE TARGET FORMAT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import llama_cpp as c
import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "peers"))
from engine import Generate, serve

WINDOW = 512


def load(model: str) -> Generate:
    c.llama_backend_init()
    weights = c.llama_model_load_from_file(model.encode(), c.llama_model_default_params())
    assert weights, model
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(weights))
    params = c.llama_context_default_params()
    params.n_ctx = params.n_batch = WINDOW
    params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
    context = c.llama_init_from_model(weights, params)
    batch = c.llama_batch_init(WINDOW, 0, 1)
    target = f"{model}.npy"

    def logits(prompts: list[list[int]], _: int) -> dict[str, Any]:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        [ids] = prompts
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            batch.logits[position] = True
        batch.n_tokens = len(ids)
        assert c.llama_decode(context, batch) == 0
        found = np.ctypeslib.as_array(c.llama_get_logits(context), (len(ids), vocabulary))
        np.save(target, found)
        return {"file": target}

    return logits


def quantize(source: str, target: str, name: str) -> None:
    params = c.llama_model_quantize_default_params()
    params.ftype = getattr(c, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.allow_requantize = True
    params.nthread = len(os.sched_getaffinity(0))
    assert c.llama_model_quantize(source.encode(), target.encode(), params) == 0


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:])
    else:
        serve(load)
