"""detinfer against transformers' eager forward on the same weights, in one process, interleaved.

    python -m benchmarks.peers --json benchmarks/results/peers.json

detinfer's side is the whole engine (scheduling, sampling, checksums, text); transformers' side is a
bare loop of forward and argmax over a dynamic cache, binary32 as detinfer's activations.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from benchmarks.common import EngineDriver, arguments, interleaved, median, prompt_ids, report
from detinfer.config import usable_cores
from detinfer.models.loader import resolve_model
from detinfer.testing.transformers_cache import new_cache


class Transformers:
    """A Hugging Face model as its own library runs it."""

    def __init__(self, model: str | None, attention: str) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            resolve_model(model).folder,
            dtype=torch.float32,
            attn_implementation=attention,
            local_files_only=True,
        ).eval()

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> float:
        """Seconds from a prompt to its first token."""
        start = time.perf_counter()
        out = self.model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        out.logits[:, -1].argmax(-1)
        return time.perf_counter() - start

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        """Seconds a token takes each of ``prompts`` (of equal length) together."""
        cache = new_cache(self.model)
        out = self.model(torch.tensor(prompts), **cache, use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(tokens):
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            out = self.model(ids, **cache, use_cache=True)
        return (time.perf_counter() - start) / tokens


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--attention", default="eager", choices=["eager", "sdpa"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(usable_cores())
    ours = EngineDriver(model=args.model, allow_fast=False)
    theirs = Transformers(args.model, args.attention)
    rows = []

    def compare(what: str, batch: int, tokens: int, mine: Any, peer: Any) -> None:
        seconds = interleaved({"detinfer": mine, "transformers": peer}, args.repeats)
        rates = {name: tokens / median(values) for name, values in seconds.items()}
        rows.append(
            {
                "phase": what,
                "batch": batch,
                **{f"{name}_tokens_per_s": rate for name, rate in rates.items()},
                "speedup": rates["detinfer"] / rates["transformers"],
            }
        )

    prompt = prompt_ids(args.prompt_tokens)
    compare(
        "prefill", 1, len(prompt),
        partial(ours.prefill, prompt, True), partial(theirs.prefill, prompt),
    )  # fmt: skip
    for batch in args.batches:
        prompts = [prompt_ids(64, seed) for seed in range(batch)]
        compare(
            "decode", batch, batch,
            partial(ours.decode, prompts, args.decode_tokens, True),
            partial(theirs.decode, prompts, args.decode_tokens),
        )  # fmt: skip
    report(
        f"detinfer against transformers {args.attention}",
        rows,
        {"model": ours.engine.info.model_name, "repeats": args.repeats},
        args.json,
    )


if __name__ == "__main__":
    main()
