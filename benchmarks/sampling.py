"""What steps take by how their tokens are sampled.

python -m benchmarks.sampling --json benchmarks/results/sampling.json
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.common import arguments, interleaved, median, prompt_ids, report, stopwatch
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.params import SamplingParams

STEPS = 30  # of a round
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top-k 50": {"top_k": 50},
    "top-p 0.9": {"top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
}


def seconds(engine: Engine, batch: int, kind: str) -> float:
    """Return the median step of requests that decode together."""
    params = {"temperature": 0.8, **KINDS[kind]}
    for number in range(batch):
        asked = SamplingParams(max_tokens=STEPS + 1, ignore_eos=True, seed=number, **params)
        engine.add_request(str(number), prompt_ids(64, number), asked)
    steps: list[float] = []
    while engine.has_unfinished():
        decoding = not engine.scheduler.waiting and all(
            request.decoding for request in engine.scheduler.running
        )
        with stopwatch() as taken:
            engine.step()
        if decoding:
            steps.append(taken())
    return median(steps)


def main() -> None:
    args = arguments(__doc__ or "", repeats=3).parse_args()
    plain: dict[str, Any] = {"prefix_caching": False, "speculation": False, "allow_fast": False}
    engine = Engine(EngineConfig(model=args.model, weights=args.weights, **plain))
    rows = []
    for batch in (1, 8, 32):
        measures = {kind: partial(seconds, engine, batch, kind) for kind in KINDS}
        found = {kind: median(one) for kind, one in interleaved(measures, args.repeats).items()}
        rows += [
            {"batch": batch, "sampled": kind, "step_ms": 1e3 * taken,
             "beyond_greedy_ms": 1e3 * (taken - found["greedy"])}
            for kind, taken in found.items()
        ]  # fmt: skip
    about = {"model": engine.info.model_name, "weights": args.weights, "repeats": args.repeats}
    report("what steps take by how they sample", rows, about, args.json)


if __name__ == "__main__":
    main()
