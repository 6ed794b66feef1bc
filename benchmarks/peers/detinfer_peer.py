"""detinfer, offline: MODEL, a folder, or FILE#WEIGHTS, as ``--weights`` has them."""

from __future__ import annotations

from typing import Any

from engine import Generate, serve

from detinfer import LLM, SamplingParams


def load(model: str) -> Generate:
    model, _, weights = model.partition("#")
    llm = LLM(
        model,
        weights=weights or "auto",
        prefix_caching=False,
        speculation=False,
        allow_fast=False,
    )

    def generate(prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        answers = llm.generate(prompts, params)
        assert all(len(answer.token_ids) == tokens for answer in answers)
        return {"digests": [answer.digest for answer in answers]}

    return generate


if __name__ == "__main__":
    serve(load)
