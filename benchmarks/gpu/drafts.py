"""What drafts are worth at batch 1: the best case, where all are right, and the common one."""

from __future__ import annotations

import random
from typing import Any

from benchmarks.common import median, stopwatch
from benchmarks.gpu.bench import Bench, Result, section
from benchmarks.gpu.engine import make_runner, random_ids
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.params import SamplingParams


def _decode(engine: Engine, ids: list[int], params: SamplingParams) -> tuple[float, str | None]:
    """Seconds a token after the first, and the answer's digest."""
    engine.add_request("one", ids, params)
    while not any(output.token_ids for output in engine.step()):
        pass
    digest = None
    with stopwatch() as seconds:
        while engine.has_unfinished():
            for output in engine.step():
                digest = output.digest
    return seconds() / (params.max_tokens or 1), digest


@section("slowdown.drafts", seconds=20)
def drafts(bench: Bench) -> Result:
    """Milliseconds a token with and without drafts, the same digests."""
    model, tokens = bench.sizes.large, 12 if bench.smoke else 96
    runner, build = make_runner(bench, model, bench.sizes.cache_bytes[1])
    ids = random_ids(random.Random(3), model, bench.sizes.decode_prompt)
    engines = {
        side: Engine(
            EngineConfig(
                numerics="native", device=runner.profile.device.type, speculation=side == "on"
            ),
            runner,
        )
        for side in ("on", "off")
    }
    rows: list[dict[str, Any]] = []
    for text, bias in (("one token again and again", {ids[0]: 100.0}), ("random", {})):
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, logit_bias=bias)
        times: dict[str, list[float]] = {side: [] for side in engines}
        digests = set()
        for turn in range(1 + bench.sizes.repeats):
            for side, engine in engines.items():
                seconds, digest = _decode(engine, ids, params)
                digests.add(digest)
                if turn:  # the first one captures graphs
                    times[side].append(1e3 * seconds)
        on, off = median(times["on"]), median(times["off"])
        rows.append(
            {
                "text": text,
                "on_ms": on,
                "off_ms": off,
                "speedup": off / on,
                "equal_digests": len(digests) == 1,
            }
        )
    accepted = engines["on"].stats()["accepted_tokens"]
    return {"model": model.name, "build_seconds": build, "accepted": accepted, "rows": rows}
