"""llama.cpp, through the C calls that its own batched example makes, from the GGUF file."""

from __future__ import annotations

import os
from typing import Any

import llama_cpp as c
import numpy as np
from engine import Generate, serve

SEQUENCES = 32
CONTEXT = 1024  # of each


def load(model: str) -> Generate:
    c.llama_backend_init()
    weights = c.llama_model_load_from_file(model.encode(), c.llama_model_default_params())
    assert weights, model
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(weights))
    params = c.llama_context_default_params()
    params.n_ctx = SEQUENCES * CONTEXT
    params.n_batch = 2048
    params.n_seq_max = SEQUENCES
    params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
    context = c.llama_init_from_model(weights, params)
    batch = c.llama_batch_init(2048, 0, 1)

    def put(token: int, position: int, sequence: int, last: bool) -> None:
        row = batch.n_tokens
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = sequence
        batch.logits[row] = last
        batch.n_tokens += 1

    def choose() -> list[int]:
        """Decode the batch; the likeliest token after each row that wants logits."""
        assert c.llama_decode(context, batch) == 0
        rows = [row for row in range(batch.n_tokens) if batch.logits[row]]
        tokens = []
        for row in rows:
            logits = c.llama_get_logits_ith(context, row)
            tokens.append(int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax()))
        batch.n_tokens = 0
        return tokens

    def generate(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        chosen: list[int] = []
        for sequence, prompt in enumerate(prompts):
            if batch.n_tokens + len(prompt) > 2048:
                chosen += choose()
            for position, token in enumerate(prompt):
                put(token, position, sequence, position == len(prompt) - 1)
        chosen += choose()
        for step in range(tokens - 1):
            for sequence, token in enumerate(chosen):
                put(token, len(prompts[0]) + step, sequence, True)
            chosen = choose()
        return {}

    return generate


if __name__ == "__main__":
    serve(load)
