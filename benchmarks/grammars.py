"""What grammars cost: steps of requests that have one, and of others while one compiles.

python -m benchmarks.grammars --json benchmarks/results/grammars.json
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from benchmarks.common import arguments, median, prompt_ids, report, stopwatch
from detinfer.config import EngineConfig
from detinfer.engine import choosing
from detinfer.engine.constraint import Constraint
from detinfer.engine.engine import Engine
from detinfer.engine.grammars import GrammarCompiler
from detinfer.params import MAX_CONSTRAINT, SamplingParams

STEPS = 60  # of a round
BATCHES = 1, 8, 32
NONE, MASKS, SMALL = "none", "each has a schema", "compiling a small schema"


def bound(number: int) -> SamplingParams:
    """Return what is bound to a schema of its own, whose answers are longer than a round."""
    one = {
        "type": "object",
        "properties": {
            f"name {number}": {"type": "string", "maxLength": 20},
            "kind": {"enum": ["knight", "witch", f"number {number}"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 100 + number},
        },
        "required": [f"name {number}", "kind", "age"],
        "additionalProperties": False,
    }
    text = json.dumps({"type": "array", "items": one, "minItems": 100, "maxItems": 100})
    return SamplingParams(max_tokens=STEPS + 1, ignore_eos=True, json_schema=text)


def largest(kind: str, number: int) -> SamplingParams:
    """Return a constraint of the largest size."""
    most = MAX_CONSTRAINT[kind]
    if kind == "json_schema":
        names = (f"{number} {i}" for i in range(most // 35))
        properties = {name: {"type": "string"} for name in names}
        text = json.dumps({"type": "object", "properties": properties})
    elif kind == "grammar":
        word = "word " * 10
        rules = " | ".join(f'"{word}{number} {i}" r{i % 50}' for i in range(most // 80))
        more = "\n".join(f'r{i} ::= [a-z]+ "x"' for i in range(50))
        text = f"root ::= {rules}\n{more}"
    else:
        text = "|".join(f"{number}x{i}.*z" for i in range(most // 15))
    assert most // 2 < len(text) <= most
    return SamplingParams(max_tokens=1, **{kind: text})


Make = Callable[[int], SamplingParams]
COMPILING: dict[str, Make] = {SMALL: bound} | {
    f"compiling the largest {kind}": partial(largest, kind) for kind in MAX_CONSTRAINT
}


class Masks:
    """Seconds of what token masks take of the steps while this is entered."""

    PARTS = (choosing, "_masks"), (Constraint, "take")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._within = False  # one part of another's

    def __enter__(self) -> Masks:
        self._real = [getattr(place, name) for place, name in self.PARTS]
        for (place, name), real in zip(self.PARTS, self._real, strict=True):
            setattr(place, name, self._timed(real))
        return self

    def __exit__(self, *error: object) -> None:
        for (place, name), real in zip(self.PARTS, self._real, strict=True):
            setattr(place, name, real)

    def _timed(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any) -> Any:
            if self._within:
                return real(*given)
            self._within = True
            try:
                with stopwatch() as seconds:
                    return real(*given)
            finally:
                self._within = False
                self.seconds += seconds()

        return timed


class Decoding:
    """Requests that go on decoding, step by step."""

    def __init__(self, model: str | None, weights: str) -> None:
        plain = {"prefix_caching": False, "speculation": False}
        config = EngineConfig(model=model, weights=weights, allow_fast=False, **plain)  # type: ignore[arg-type]
        self.engine = Engine(config)
        self._numbers = count(1000)  # no grammar is kept from before
        self._grammars = GrammarCompiler(self.engine.tokenizer, self.engine.info)
        self._grammars.prepare()

    def seconds(self, batch: int, kind: str) -> tuple[list[float], list[float]]:
        """Return what each step of a round takes, and how long each grammar took to compile."""
        plain = SamplingParams(max_tokens=STEPS + 1, ignore_eos=True)
        for number in range(batch):
            params = bound(next(self._numbers)) if kind == MASKS else plain
            self.engine.add_request(str(number), prompt_ids(64, number), params)
        while not all(request.decoding for request in self.engine.scheduler.running) or (
            self.engine.scheduler.waiting
        ):
            self.engine.step()
        steps: list[float] = []
        waits: list[float] = []
        make = COMPILING.get(kind)
        compiling, started = None, 0.0
        while self.engine.has_unfinished():
            if compiling is not None and compiling.done():
                compiling.result()
                waits.append(time.perf_counter() - started)
                compiling = None
            if compiling is None and make is not None:
                params, started = make(next(self._numbers)), time.perf_counter()
                compiling = self._grammars.start(params)
            with stopwatch() as seconds:
                self.engine.step()
            steps.append(seconds())
        if compiling is not None:
            compiling.result()
        return steps, waits


def main() -> None:
    parser = arguments(__doc__ or "", repeats=5)
    args = parser.parse_args()
    timed = Decoding(args.model, args.weights)
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        kinds = (NONE, MASKS, *COMPILING)
        steps: dict[str, list[float]] = {kind: [] for kind in kinds}
        waits: dict[str, list[float]] = {kind: [] for kind in kinds}
        masks = dict.fromkeys(kinds, 0.0)
        for round_ in range(args.repeats + 1):
            for kind in kinds:
                with Masks() as of_masks:
                    found, waited = timed.seconds(batch, kind)
                if round_:  # the first warms up
                    masks[kind] += of_masks.seconds
                    steps[kind] += found
                    waits[kind] += waited
        rows += [
            {
                "batch": batch,
                "meanwhile": kind,
                "step_ms": 1e3 * median(steps[kind]),
                "mean_ms": 1e3 * sum(steps[kind]) / len(steps[kind]),
                "longest_ms": 1e3 * max(steps[kind]),
                "mask_share": masks[kind] / sum(steps[kind]),
                "of_plain": median(steps[kind]) / median(steps[NONE]),
                "compiled": len(waits[kind]),
                "compiled_in_ms": 1e3 * median(waits[kind]) if waits[kind] else None,
            }
            for kind in kinds
        ]
    report(
        "what steps take beside grammars",
        rows,
        {"model": timed.engine.info.model_name, "weights": args.weights, "repeats": args.repeats},
        args.json,
    )


if __name__ == "__main__":
    main()
