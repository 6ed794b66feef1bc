"""How much faster than an answer was made its receipt is replayed, at batch 1.

python -m benchmarks.receipts --json benchmarks/results/receipts.json
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.common import arguments, median, report, stopwatch
from benchmarks.features import OTHER, REPETITIVE
from detinfer.cli.generate import run_request
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.engine.validation import encode_text
from detinfer.params import SamplingParams
from detinfer.receipts.receipt import receipt_of, receipt_params
from detinfer.receipts.replay import verify
from detinfer.receipts.seal import seal


def seconds(engine: Engine, ids: list[int], params: SamplingParams) -> tuple[float, float]:
    """Return how long an answer took, and the replay of its receipt."""
    engine.block_manager.forget()
    with stopwatch() as made:
        answer = run_request(engine, ids, params, lambda text: None)
    sealed = seal(receipt_of(engine.info, answer, params).to_value())
    engine.block_manager.forget()
    with stopwatch() as replayed:
        verdict = verify(sealed, engine)
    assert verdict.match, verdict.findings
    assert verdict.tokens == len(answer.token_ids) == params.max_tokens
    return made(), replayed()


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    engines = {
        drafts: Engine(
            EngineConfig(
                model=args.model, weights=args.weights, allow_fast=False, speculation=drafts == "on"
            )
        )
        for drafts in ("off", "on")
    }
    params = SamplingParams(max_tokens=args.tokens, ignore_eos=True, seed=1)
    rows: list[dict[str, Any]] = []
    for name, text in (OTHER | REPETITIVE).items():
        own = replace(params, temperature=0.8 if name == "sampled" else 0.0)
        for drafts, engine in engines.items():
            ids = encode_text(engine.tokenizer, text)
            asked = receipt_params(own, args.tokens)
            seconds(engine, ids, asked)  # unrecorded
            times = [seconds(engine, ids, asked) for _ in range(args.repeats)]
            made, replayed = (median([one[i] for one in times]) for i in (0, 1))
            rows.append(
                {
                    "text": name,
                    "drafts": drafts,
                    "prompt_tokens": len(ids),
                    "made_s": made,
                    "replayed_s": replayed,
                    "ratio": median([one / other for one, other in times]),
                }
            )
    report(
        f"receipts of {args.tokens} tokens",
        rows,
        {
            "model": engines["off"].info.model_name,
            "weights": args.weights,
            "repeats": args.repeats,
        },
        args.json,
    )


if __name__ == "__main__":
    main()
