"""What speed features save: drafts at batch 1, and prompts that share a beginning.

python -m benchmarks.features --json benchmarks/results/features.json
"""

from __future__ import annotations

import random
from typing import Any

from benchmarks.common import arguments, interleaved, median, report, stopwatch
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


class Timer:
    """Times whole answers on one engine with a feature on or off."""

    def __init__(self, model: str | None) -> None:
        self.engine = Engine(EngineConfig(model=model, allow_fast=False))
        self._count = 0
        self.digests: set[str | None] = set()

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        return encode_text(self.engine.tokenizer, text)

    def decode(self, ids: list[int], params: SamplingParams, speculation: bool) -> float:
        """Seconds a token after the first."""
        engine = self.engine
        engine._speculation = speculation
        self._add(ids, params)
        while not engine.scheduler.running or not engine.scheduler.running[0].decoding:
            engine.step()
        tokens = 0
        with stopwatch() as seconds:
            while engine.has_unfinished():
                for output in engine.step():
                    tokens += len(output.token_ids)
                    self.digests.add(output.digest)
        return seconds() / tokens

    def first_token(self, ids: list[int], forget: bool) -> float:
        """Seconds to the first token."""
        if forget:
            self.engine.block_manager.forget()
        self._add(ids, SamplingParams(max_tokens=1, ignore_eos=True))
        with stopwatch() as seconds:
            while self.engine.has_unfinished():
                for output in self.engine.step():
                    self.digests.add(output.digest)
        return seconds()

    def _add(self, ids: list[int], params: SamplingParams) -> None:
        self._count += 1
        self.engine.add_request(str(self._count), ids, params)

    def same_digest(self) -> bool:
        """Whether all answers since the last call had one digest."""
        found = self.digests - {None}
        self.digests = set()
        return len(found) == 1


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--tokens", type=int, default=192)
    args = parser.parse_args()
    timer = Timer(args.model)
    rows: list[dict[str, Any]] = []
    for kind, texts in (("repetitive", REPETITIVE), ("other", OTHER)):
        for name, text in texts.items():
            ids = timer.ids(text)
            temperature = 0.8 if name == "sampled" else 0.0
            params = SamplingParams(
                max_tokens=args.tokens, ignore_eos=True, temperature=temperature, seed=1
            )
            seconds = interleaved(
                {
                    "on": lambda ids=ids, params=params: timer.decode(ids, params, True),
                    "off": lambda ids=ids, params=params: timer.decode(ids, params, False),
                },
                args.repeats,
            )
            rows.append(
                {
                    "feature": f"drafts, {kind} text: {name}",
                    "on_ms": 1e3 * median(seconds["on"]),
                    "off_ms": 1e3 * median(seconds["off"]),
                    "speedup": median(seconds["off"]) / median(seconds["on"]),
                    "equal_digests": timer.same_digest(),
                }
            )
    rng = random.Random(0)
    prefix = [rng.randrange(100, 40_000) for _ in range(1500)]
    suffix = [rng.randrange(100, 40_000) for _ in range(32)]
    seconds = {"on": [], "off": []}
    for _ in range(args.repeats):
        seconds["off"].append(timer.first_token(prefix + suffix, forget=True))
        kept, timer.digests = timer.digests, set()
        timer.first_token(prefix, forget=True)  # leaves its pages behind
        timer.digests = kept
        seconds["on"].append(timer.first_token(prefix + suffix, forget=False))
    rows.append(
        {
            "feature": "prefix cache: first token after 1500 shared + 32 own tokens",
            "on_ms": 1e3 * median(seconds["on"]),
            "off_ms": 1e3 * median(seconds["off"]),
            "speedup": median(seconds["off"]) / median(seconds["on"]),
            "equal_digests": timer.same_digest(),
        }
    )
    report(
        "what speed features save",
        rows,
        {"model": timer.engine.info.model_name, "repeats": args.repeats},
        args.json,
    )


if __name__ == "__main__":
    main()
