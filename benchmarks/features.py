"""What speed features save: drafts at batch 1 and 3, and prompts that share a beginning.

python -m benchmarks.features --json benchmarks/results/features.json
"""

from __future__ import annotations

import random
from typing import Any

from benchmarks.common import arguments, median, report, stopwatch
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.engine.validation import encode_text
from detinfer.params import SamplingParams

RECORD = '{{"id": {0}, "name": "user{0}", "active": true, "roles": ["reader", "writer"]}},\n'
FIELD = "    def get_field_{0}(self):\n        return self._fields['field_{0}']\n\n"
REPETITIVE = {
    "json": "[\n" + "".join(RECORD.format(i) for i in range(1, 6)),
    "code": "class Record:\n" + "".join(FIELD.format(i) for i in range(1, 6)),
    "quotes": 'He said: "To be, or not to be, that is the question."\n' * 4,
}
OTHER = {
    "story": "Once upon a time, in a village by the sea, there lived an old clockmaker who",
    "question": "Explain in your own words why the sky is blue and sunsets are red.",
    "sampled": "Write a letter from a lighthouse keeper to his daughter.",
}


Request = tuple[list[int], SamplingParams]


class Timed:
    """An engine each of whose steps is timed."""

    def __init__(self, model: str | None, **settings: Any) -> None:
        self.engine = Engine(EngineConfig(model=model, allow_fast=False, **settings))
        self.digests: dict[str, str | None] = {}  # of the last answers

    def start(self, requests: list[Request]) -> None:
        """Add requests."""
        self.digests = {}
        for i, (ids, params) in enumerate(requests):
            self.engine.add_request(str(i), ids, params)

    def prefill(self) -> None:
        """Run the requests until each has its first token."""
        scheduler = self.engine.scheduler
        while scheduler.waiting or not all(row.decoding for row in scheduler.running):
            self.engine.step()

    def step(self) -> float:
        """Seconds of one step; none once all requests have ended."""
        if not self.engine.has_unfinished():
            return 0.0
        with stopwatch() as seconds:
            for output in self.engine.step():
                self.digests[output.request_id] = output.digest
        return seconds()

    def first_token(self, ids: list[int], forget: bool) -> float:
        """Seconds to the only token of an answer."""
        if forget:
            self.engine.block_manager.forget()
        self.start([(ids, SamplingParams(max_tokens=1, ignore_eos=True))])
        total = 0.0
        while self.engine.has_unfinished():
            total += self.step()
        return total


def decode(engines: dict[str, Timed], requests: list[Request]) -> tuple[dict[str, float], bool]:
    """Seconds from the first token to the last on each engine, and whether all digests are equal.

    Of several requests the mean, so that each one's pace counts and not the slowest's alone. The
    engines take turns step by step, so that what disturbs the machine disturbs all of them.
    """
    for timed in engines.values():
        timed.start(requests)
        timed.prefill()
    totals = dict.fromkeys(engines, 0.0)
    while any(timed.engine.has_unfinished() for timed in engines.values()):
        for name, timed in engines.items():
            unfinished = len(timed.engine.scheduler.running)
            totals[name] += timed.step() * unfinished / len(requests)
    one, *others = (timed.digests for timed in engines.values())
    return totals, all(one == other for other in others)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--tokens", type=int, default=192)
    args = parser.parse_args()
    engines = {
        name: Timed(args.model, weights=args.weights, speculation=name == "on")
        for name in ("on", "off")
    }
    tokenizer = engines["on"].engine.tokenizer
    rows: list[dict[str, Any]] = []
    for kind, texts in (("repetitive", REPETITIVE), ("other", OTHER)):
        requests = {
            name: (
                encode_text(tokenizer, text),
                SamplingParams(
                    max_tokens=args.tokens,
                    ignore_eos=True,
                    temperature=0.8 if name == "sampled" else 0.0,
                    seed=1,
                ),
            )
            for name, text in texts.items()
        }
        alone = {name: [request] for name, request in requests.items()}
        for name, batch in (alone | {"all at once": list(requests.values())}).items():
            decode(engines, batch)  # unrecorded
            measured = [decode(engines, batch) for _ in range(args.repeats)]
            rows.append(
                _row(
                    f"drafts, {kind} text: {name}",
                    {
                        side: [seconds[side] / (args.tokens - 1) for seconds, _ in measured]
                        for side in engines
                    },
                    all(equal for _, equal in measured),
                )
            )
    rng = random.Random(0)
    prefix = [rng.randrange(100, 40_000) for _ in range(1500)]
    suffix = [rng.randrange(100, 40_000) for _ in range(32)]
    timed, seconds, digests = engines["on"], {"on": [], "off": []}, set()
    for _ in range(args.repeats):
        seconds["off"].append(timed.first_token(prefix + suffix, forget=True))
        digests.add(timed.digests["0"])
        timed.first_token(prefix, forget=True)  # leaves its pages behind
        seconds["on"].append(timed.first_token(prefix + suffix, forget=False))
        digests.add(timed.digests["0"])
    rows.append(
        _row(
            "prefix cache: first token after 1500 shared + 32 own tokens",
            seconds,
            len(digests) == 1,
        )
    )
    report(
        "what speed features save",
        rows,
        {
            "model": timed.engine.info.model_name,
            "weights": args.weights,
            "repeats": args.repeats,
        },
        args.json,
    )


def _row(feature: str, seconds: dict[str, list[float]], equal: bool) -> dict[str, Any]:
    on, off = median(seconds["on"]), median(seconds["off"])
    return {
        "feature": feature,
        "on_ms": 1e3 * on,
        "off_ms": 1e3 * off,
        "speedup": off / on,
        "equal_digests": equal,
    }


if __name__ == "__main__":
    main()
