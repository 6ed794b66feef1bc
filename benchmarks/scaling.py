"""How our engine scales: with the batch, the context and the threads; and that its bits do not.

    python -m benchmarks.scaling --json benchmarks/results/scaling.json

A request is the same in every batch and on every number of threads: so must its digest be, or the
run ends with an error. A Markdown page and a picture go beside the JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from benchmarks import chart, page
from benchmarks.common import median, prompt_ids, report, stopwatch
from benchmarks.limits import Limits
from benchmarks.limits import measure as measure_limits
from benchmarks.roofline import Model
from detinfer.batch import Batch
from detinfer.checkpoint.loader import resolve_model
from detinfer.config import WEIGHTS, EngineConfig
from detinfer.engine.engine import Engine
from detinfer.machine import usable_cores
from detinfer.params import SamplingParams

CONTEXTS = (64, 512, 2048, 8064)  # whole pages
BATCHES = (1, 2, 4, 8, 16, 32, 64)
MOST = 16384  # tokens of a batch's prompts: more would take gigabytes, and minutes
STEPS = 24
FAR = 2048  # of shorter contexts, what a step takes longer is no more than noise

Rows = list[dict[str, Any]]


def answer(
    engine: Engine, prompts: list[list[int]], tokens: int
) -> tuple[list[tuple[float, float]], list[str]]:
    """Return each step's seconds, all and those outside the model, and each request's digest."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params)
    forward, seconds, digests = engine.runner.forward, [], {}
    inside = 0.0

    def timed(batch: Batch) -> Tensor:
        nonlocal inside
        with stopwatch() as run:
            logits = forward(batch)
        inside = run()
        return logits

    with mock.patch.object(engine.runner, "forward", timed):
        while engine.has_unfinished():
            with stopwatch() as step:
                outputs = engine.step()
            seconds.append((step(), step() - inside))
            digests |= {one.request_id: one.digest for one in outputs if one.digest}
    return seconds, [digests[str(i)] for i in range(len(prompts))]


def point(engine: Engine, context: int, batch: int) -> tuple[float, float, float, list[str]]:
    """Return seconds of all prompts, of a step of a token after each, in all and outside the model.

    And the requests' digests.
    """
    prompts = [prompt_ids(context + 1, seed) for seed in range(batch)]
    engine.block_manager.forget()
    prefill, _ = answer(engine, prompts, 1)
    # Now that all pages of the prompts are cached, a step takes what is left of all of them, and
    # each that follows holds a token of each.
    [_, *decode], digests = answer(engine, prompts, 1 + STEPS)
    steps, outside = zip(*decode, strict=True)
    return sum(step for step, _ in prefill), median(steps), median(outside), digests


def check(seen: dict[tuple[int, int], str], context: int, digests: Sequence[str]) -> None:
    """Compare digests with those of the same requests at another point, and remember the new.

    Raises:
        RuntimeError: one differs.
    """
    for request, digest in enumerate(digests):
        before = seen.setdefault((context, request), digest)
        if digest != before:
            raise RuntimeError(
                f"context {context}, batch {len(digests)}: request {request} has digest {digest}, "
                f"had {before} in another batch, or on other threads"
            )


def measured(engine: Engine, threads: int, seen: dict[tuple[int, int], str], most: int) -> Rows:
    """Return what every point took on this engine."""
    made = []
    point(engine, CONTEXTS[0], BATCHES[-1])  # warms up
    for context in CONTEXTS:
        for batch in (batch for batch in BATCHES if batch * context <= most):
            prefill, step, outside, digests = point(engine, context, batch)
            check(seen, context, digests)
            made.append(
                {
                    "threads": threads,
                    "context": context,
                    "batch": batch,
                    "prefill_tokens_per_second": batch * (context + 1) / prefill,
                    "step_ms": 1000 * step,
                    "outside_model_ms": 1000 * outside,
                    "decode_tokens_per_second": batch / step,
                }
            )
            print(f"threads {threads}, context {context}, batch {batch}", file=sys.stderr)
    return made


def with_shares(rows: Rows, model: Model, limits: dict[int, Limits]) -> Rows:
    """Add the share of its threads' limits that each decoding step reached.

    Beside it the share of the bandwidth at which keys and values are read: by what a step takes
    longer than one of the shortest context.
    """
    seen = 1 + (1 + STEPS) / 2  # of a request's own, on average
    near = {(r["threads"], r["batch"]): r for r in rows if r["context"] == CONTEXTS[0]}
    made = []
    for row in rows:
        batch, bounds = row["batch"], limits[row["threads"]]
        least = model.decode(batch, row["context"] + seen).seconds(bounds)
        told = row | {"share": 1000 * least / row["step_ms"], "kv_share": None}
        if row["context"] >= FAR:
            both = near[row["threads"], batch], row
            ends = [(batch * one["context"], one["step_ms"] / 1000) for one in both]
            told["kv_share"] = model.kv_share(ends[0], ends[1], bounds)
        made.append(told)
    return made


def picture(title: str, rows: Rows) -> str:
    """Draw decoding by batch, a panel for each number of threads, a line for each context."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        lines = panels.setdefault(f"threads: {row['threads']}", {})
        points = lines.setdefault(f"context {row['context']:,}", [])
        points.append((row["batch"], row["decode_tokens_per_second"]))
    return chart.lines(title, panels, "batch")


def parts(rows: Rows, limits: dict[int, Limits], requests: int) -> list[str]:
    """Return the page's parts, as Markdown."""
    told = [
        {name: f"{v:.0%}" if name.endswith("share") and v else v or "" for name, v in row.items()}
        for row in rows
    ]
    bounds = [
        {"threads": threads, **{name: f"{value / 1e9:.3g}" for name, value in of._asdict().items()}}
        for threads, of in limits.items()
    ]
    return [
        f"{requests} requests, each with one digest in every batch and on every number of threads.",
        page.table(told),
        "Outside the model a step is laid out, its tokens are chosen and made text. "
        "Shares are of the least time that these limits leave, in 10^9 bytes or multiply-adds a "
        "second; `kv share` is of the bandwidth, by what a step takes longer than at the shortest "
        "context.",
        page.table(bounds),
    ]


def main() -> None:
    cores = usable_cores()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder, .gguf file or hub id")
    parser.add_argument("--weights", choices=WEIGHTS, default="packed", help="default packed")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, cores}), help="default 1 and all"
    )
    parser.add_argument("--most", type=int, default=MOST, help="tokens of a batch's prompts")
    parser.add_argument("--json", type=Path, help="write results here, a page and a picture beside")
    args = parser.parse_args()
    model = Model.read(resolve_model(args.model, weights=args.weights).folder)
    rows: Rows = []
    seen: dict[tuple[int, int], str] = {}
    limits = {}
    for threads in args.threads:
        limits[threads] = measure_limits(threads)
        engine = Engine(
            EngineConfig(
                args.model,
                weights=args.weights,
                threads=threads,
                speculation=False,
                allow_fast=False,
            )
        )
        rows += measured(engine, threads, seen, args.most)
    rows = with_shares(rows, model, limits)
    title = f"decoding by batch, context and threads, weights {args.weights}, tokens per second"
    told = {threads: of._asdict() for threads, of in limits.items()}
    digests = {f"context {c}, request {i}": digest for (c, i), digest in seen.items()}
    result = report(title, rows, {"limits": told, "digests": digests}, args.json)
    if args.json:
        page.write(args.json, result, parts(rows, limits, len(seen)), picture(title, rows))


if __name__ == "__main__":
    main()
