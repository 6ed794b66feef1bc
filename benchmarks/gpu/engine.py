"""Whole engines: no load moves a bit, and what that costs against stock kernels.

Both modes share scheduler, graphs and cache; a fast step has PyTorch's matrix products, its flash
attention over whole prompts, and the same paged attention over cached keys.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.common import EngineDriver, median, stopwatch
from benchmarks.gpu.bench import Bench, Result, section
from benchmarks.gpu.random_model import random_runner
from benchmarks.gpu.sizes import Model
from detinfer import ops
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.params import SamplingParams
from detinfer.runner.native import NativeRunner
from detinfer.runner.plans import plans_agree

_REPLAYS = 30
MODES = {"deterministic": True, "fast": False}


def make_runner(bench: Bench, model: Model, cache_bytes: int) -> tuple[NativeRunner, float]:
    """Return a runner, kept for the group's next section, and its seconds, 0 for a kept one."""
    kept = bench.shared.get("runner")
    if kept is not None and kept[0] is model:
        return kept[1], 0.0
    bench.release()
    with stopwatch() as seconds:
        runner = random_runner(bench, model, cache_bytes)
        _wait(bench)
    bench.shared["runner"] = (model, runner)
    return runner, seconds()


def _wait(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize()


def random_ids(rng: random.Random, model: Model, count: int) -> list[int]:
    """Return a prompt of ordinary tokens."""
    return [rng.randrange(3, model.vocab) for _ in range(count)]


# Invariance


def _targets(bench: Bench, model: Model, deterministic: bool = True) -> dict[str, Any]:
    """Return a few requests: short, over a page's edge, chunked, sampled, one that makes drafts."""
    rng = random.Random(1)
    few = random_ids(rng, model, 3)

    def params(**given: Any) -> SamplingParams:
        return SamplingParams(
            max_tokens=bench.sizes.tokens, ignore_eos=True, seed=11, deterministic=deterministic,
            **given,
        )  # fmt: skip

    targets = {
        "short": (random_ids(rng, model, 3), params()),
        "over a page's edge": (random_ids(rng, model, 62), params()),
        "sampled": (random_ids(rng, model, 20), params(temperature=0.9, top_p=0.95)),
        "repetitive": (few * 4, params(logit_bias=dict.fromkeys(few, 30.0))),
    }
    if not bench.smoke:
        targets["long"] = (random_ids(rng, model, 700), params())
    return targets


def _under_load(
    bench: Bench,
    runner: NativeRunner,
    targets: dict[str, Any],
    count: int,
    seed: int,
    enough: Callable[[], bool] = lambda: False,
    speculation: bool = True,
) -> dict[str, list[str]]:
    """Digests of ``count`` generations of the targets under random arrivals, limits, and pages.

    Args:
        enough: asked before each step; from when it holds no more generations begin.
    """
    rng = random.Random(seed)
    device = runner.profile.device.type
    config = EngineConfig(numerics="native", device=device, speculation=speculation)
    engine = Engine(config, runner)
    names = list(targets)
    todo = [names[i % len(names)] for i in range(count)]
    rng.shuffle(todo)
    digests: dict[str, list[str]] = {name: [] for name in names}
    while todo or engine.has_unfinished():
        if enough():
            todo.clear()
        while todo and (rng.random() < 0.9 or not engine.has_unfinished()):
            name = todo.pop()
            engine.add_request(f"{name}/{len(todo)}", *targets[name])
        limits = engine.scheduler.limits
        limits.max_num_seqs = rng.choice([1, 3, 16, 33, 100, 256])
        limits.max_num_batched_tokens = rng.choice(bench.sizes.budgets)
        limits.max_chunk = rng.choice(bench.sizes.chunks)
        engine.block_manager.shuffle(rng)
        for output in engine.step():
            if output.finish_reason is not None:
                if output.finish_reason != "length":
                    raise RuntimeError(f"{output.request_id}: {output.error}")
                digests[output.request_id.partition("/")[0]].append(str(output.digest))
    engine.check_integrity()
    return digests


def _distinct(digests: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: sorted(set(found)) for name, found in digests.items()}


def _counts(digests: dict[str, list[str]]) -> dict[str, int]:
    return {name: len(set(found)) for name, found in digests.items()}


@section("engine.invariance", seconds=70)
def invariance(bench: Bench) -> Result:
    """1,000 generations under random load: one digest a prompt; graphs on = off."""
    model, sizes = bench.sizes.small, bench.sizes
    runner, build = make_runner(bench, model, sizes.cache_bytes[0])
    assert runner._fused is not None
    fused = partial(runner._run_fused, runner._fused)
    with (
        ops.use(runner.profile),
        torch.inference_mode(),
    ):  # again, now that the weights are not zeros
        agree = plans_agree(runner._run_modules, fused, model.vocab)
    targets = _targets(bench, model)
    share = 0.0 if bench.smoke else bench.left() / 2  # of the time, for the other checks
    under_load = partial(_under_load, bench, runner)
    with stopwatch() as seconds:
        loaded = under_load(targets, sizes.generations, 0, enough=lambda: bench.left() < share)
    alone = {
        name: under_load({name: one}, 1, 1, speculation=False)[name]
        for name, one in targets.items()
    }
    few = max(len(targets), sizes.generations // 8)
    graphs, runner._graphs = runner._graphs, None
    try:
        eager = under_load(targets, few, seed=2)
    finally:
        runner._graphs = graphs
    fast = under_load(_targets(bench, model, deterministic=False), 2 * few, seed=3)
    with _changed_bit(runner, targets["short"][0][0]):
        changed = under_load({"short": targets["short"]}, 1, seed=4)["short"]
    one_each = all(len(set(found)) == 1 for found in loaded.values())
    alone_equal = _distinct(alone) == _distinct(loaded)
    eager_equal = _distinct(eager) == _distinct(loaded)
    bit_seen = not set(changed) & set(loaded["short"])
    return {
        "model": runner.model_name,
        "build_seconds": build,
        "plans_agree": agree,
        "generations": sum(len(found) for found in loaded.values()),
        "seconds": seconds(),
        "digests": _counts(loaded),
        "one_digest_each": one_each,
        "alone_equal": alone_equal,
        "graphs": graphs is not None,
        "graphs_off_equal": eager_equal,
        "fast_mode_digests": _counts(fast),
        "fast_mode_varies": any(count > 1 for count in _counts(fast).values()),
        "a_changed_bit_is_seen": bit_seen,
        "passed": agree and one_each and alone_equal and eager_equal and bit_seen,
    }


@contextmanager
def _changed_bit(runner: NativeRunner, token: int) -> Iterator[None]:
    """Return the control: the last bit of one element of a token's embedding, flipped."""
    assert runner._fused is not None
    bits = runner._fused.pattern.embedding.packed.tensor.view(torch.int16)
    bits[token, 0] ^= 1
    try:
        yield
    finally:
        bits[token, 0] ^= 1


# Slowdown


class _Driver(EngineDriver):
    """An engine over a runner that is there already."""

    def __init__(self, runner: NativeRunner, **settings: Any) -> None:
        settings |= {"numerics": "native", "device": runner.profile.device.type}
        settings |= {"prefix_caching": False, "speculation": False}  # every round does all the work
        self.engine = Engine(EngineConfig(**settings), runner)
        self._count = 0

    def steps(self, prompts: list[list[int]], tokens: int, deterministic: bool) -> list[float]:
        """Seconds of each decode step of ``prompts`` together, the host's work included."""
        for prompt in prompts:
            self._add(prompt, tokens, deterministic)
        while self.engine.scheduler.waiting or not all(
            request.decoding for request in self.engine.scheduler.running
        ):
            self.engine.step()
        every = []
        while self.engine.has_unfinished():
            start = time.perf_counter()
            self.engine.step()
            every.append(time.perf_counter() - start)
        return every

    def all_at_once(self, requests: list[tuple[list[int], int]], deterministic: bool) -> float:
        """Seconds from submission to the last token of all."""
        with stopwatch() as seconds:
            for prompt, tokens in requests:
                self._add(prompt, tokens, deterministic)
            self.run_out()
        return seconds()

    def run_out(self) -> None:
        """Step until nothing is left."""
        while self.engine.has_unfinished():
            for output in self.engine.step():
                if output.error:
                    raise RuntimeError(f"request {output.request_id}: {output.error}")


def _decode_latency(bench: Bench, runner: NativeRunner, model: Model) -> list[dict[str, Any]]:
    driver, rows = _Driver(runner), []
    for batch in bench.sizes.batches:
        rng = random.Random(batch)
        prompts = [random_ids(rng, model, bench.sizes.decode_prompt) for _ in range(batch)]
        times: dict[str, list[float]] = {name: [] for name in MODES}
        for turn in range(1 + bench.sizes.repeats):
            for name, deterministic in MODES.items():
                steps = driver.steps(prompts, bench.sizes.decode_tokens, deterministic)
                if turn:  # the first one captures the graph
                    times[name] += steps
            if bench.left() < 5:
                break
        if not times["fast"]:
            break
        milliseconds = {name: median(steps) * 1e3 for name, steps in times.items()}
        rows.append(
            {
                "batch": batch,
                **{f"{name}_ms": value for name, value in milliseconds.items()},
                **{f"{name}_device_ms": _device_ms(runner, batch, d) for name, d in MODES.items()},
                "steps": len(times["fast"]),
                "slowdown": milliseconds["deterministic"] / milliseconds["fast"],
            }
        )
    return rows


def _device_ms(runner: NativeRunner, batch: int, deterministic: bool) -> float | None:
    """Milliseconds of the captured step alone; None where steps are not captured."""
    graph = runner._graphs and runner._graphs._graphs.get((batch, deterministic))
    if graph is None:
        return None
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.inference_mode():
        begin.record()
        for _ in range(_REPLAYS):
            graph.replay()
        end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / _REPLAYS


def _slowdowns(result: Result) -> float | None:
    ratios = [row["slowdown"] for row in result["rows"]]
    return statistics.geometric_mean(ratios) if ratios else None


@section("slowdown.decode", seconds=60)
def decode_latency(bench: Bench) -> Result:
    """Milliseconds of a decode step, the host's work and sampling included."""
    runner, build = make_runner(bench, bench.sizes.large, bench.sizes.cache_bytes[1])
    rows = _decode_latency(bench, runner, bench.sizes.large)
    result: Result = {"model": runner.model_name, "build_seconds": build, "rows": rows}
    memory = torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else None
    return {**result, "slowdown": _slowdowns(result), "peak_device_bytes": memory}


@section("slowdown.sequences", seconds=90)
def published_experiment(bench: Bench) -> Result:
    """1,000 sequences of 90 to 110 tokens, all submitted at once; interleaved D F D F."""
    sizes, model = bench.sizes, bench.sizes.large
    runner, build = make_runner(bench, model, sizes.cache_bytes[1])
    rng = random.Random(0)
    requests = [
        (random_ids(rng, model, rng.randint(*sizes.prompt_lengths)), rng.randint(*sizes.lengths))
        for _ in range(sizes.sequences)
    ]
    rows = []
    for limit in sizes.limits:
        driver = _Driver(runner, max_num_seqs=limit)
        times: dict[str, list[float]] = {name: [] for name in MODES}
        for turn in range(3):
            round_seconds = 0.0
            for name, deterministic in MODES.items():
                seconds = driver.all_at_once(requests, deterministic)
                round_seconds += seconds
                if turn:  # the first one captures graphs
                    times[name].append(seconds)
            if turn and bench.left() < 1.3 * round_seconds:
                break
        medians = {name: median(values) for name, values in times.items()}
        rows.append(
            {
                "max_num_seqs": limit,
                **{f"{name}_s": values for name, values in times.items()},
                **{f"{name}_median_s": value for name, value in medians.items()},
                "slowdown": medians["deterministic"] / medians["fast"],
            }
        )
        if bench.left() < 4 * round_seconds:
            break
    return {
        "model": runner.model_name,
        "build_seconds": build,
        "sequences": sizes.sequences,
        "tokens": sum(tokens for _, tokens in requests),
        "tokenizer": "a stand-in that gives a space a token",
        "rows": rows,
    }


@section("slowdown.throughput", seconds=70)
def throughput(bench: Bench) -> Result:
    """Tokens a second of prompts and answers of 1,024 tokens each, submitted at once."""
    model = bench.sizes.large
    runner, build = make_runner(bench, model, bench.sizes.cache_bytes[1])
    count, prompt, answer = bench.sizes.throughput
    rng = random.Random(2)
    requests = [(random_ids(rng, model, prompt), answer) for _ in range(count)]
    warm = [(ids, 2) for ids, _ in requests]
    driver = _Driver(runner)
    seconds = {}
    for name, deterministic in MODES.items():
        driver.all_at_once(warm, deterministic)
        seconds[name] = driver.all_at_once(requests, deterministic)
    return {
        "model": runner.model_name,
        "build_seconds": build,
        "sequences": count,
        "prompt_tokens": prompt,
        "answer_tokens": answer,
        **{f"{name}_s": value for name, value in seconds.items()},
        **{f"{name}_tokens_per_s": count * answer / value for name, value in seconds.items()},
        "slowdown": seconds["deterministic"] / seconds["fast"],
    }


@section("slowdown.other", seconds=45)
def other_model(bench: Bench) -> Result:
    """Return the decode latency of a further model."""
    runner, build = make_runner(bench, bench.sizes.other, bench.sizes.cache_bytes[0])
    rows = _decode_latency(bench, runner, bench.sizes.other)
    result: Result = {"model": runner.model_name, "build_seconds": build, "rows": rows}
    return {**result, "slowdown": _slowdowns(result)}
