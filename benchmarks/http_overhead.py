"""What HTTP costs: tokens a second through the server against the same requests offline.

    python -m benchmarks.http_overhead --json benchmarks/results/http_overhead.json

So many clients ask at once and wait for their whole answers, or stream them; the client shares the
server's cores. Every answer must have the digest that it has offline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import arguments, interleaved, median, prompt_ids, report
from benchmarks.http_client import post
from benchmarks.serving import serving
from detinfer import LLM, SamplingParams


async def ask_all(port: int, prompts: list[list[int]], body: dict[str, Any], at_once: int) -> Any:
    """Return the digests of all answers."""
    gate = asyncio.Semaphore(at_once)

    async def ask(prompt: list[int]) -> str:
        async with gate, post(port, "/generate", {**body, "input_ids": prompt}) as response:
            assert response.status == 200, response.status
            if body["stream"]:
                return str([event async for event in response.events()][-1]["digest"])
            return str((await response.json())["digest"])

    return await asyncio.gather(*map(ask, prompts))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    prompts = [prompt_ids(16, seed) for seed in range(args.requests)]
    sequences = args.concurrency
    llm = LLM(args.model, weights=args.weights, max_num_seqs=sequences, allow_fast=False)
    params = SamplingParams(max_tokens=args.tokens, ignore_eos=True)
    digests = [answer.digest for answer in llm.generate(prompts, params)]

    def offline() -> float:
        start = time.perf_counter()
        assert [answer.digest for answer in llm.generate(prompts, params)] == digests
        return time.perf_counter() - start

    def through(port: int, stream: bool) -> Callable[[], float]:
        body = {"max_tokens": args.tokens, "ignore_eos": True, "stream": stream}

        def measure() -> float:
            start = time.perf_counter()
            assert asyncio.run(ask_all(port, prompts, body, args.concurrency)) == digests
            return time.perf_counter() - start

        return measure

    flags = ("--no-fast-mode", "--weights", args.weights, "--max-num-seqs", str(sequences))
    with serving(args.model, *flags) as server:
        measures = {
            "offline": offline,
            "non-streaming": through(server.port, False),
            "streaming": through(server.port, True),
        }
        seconds = interleaved(measures, args.repeats)
    tokens = args.requests * args.tokens
    rows = [
        {
            "requests": name,
            "tokens_per_second": tokens / median(values),
            "of_offline": median(seconds["offline"]) / median(values),
        }
        for name, values in seconds.items()
    ]
    asked = ("weights", "concurrency", "repeats", "tokens")
    extra = {name: getattr(args, name) for name in asked}
    report("throughput over HTTP", rows, extra, args.json)


if __name__ == "__main__":
    main()
