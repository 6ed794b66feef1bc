"""What determinism costs: deterministic against fast mode in one engine, interleaved.

python -m benchmarks.slowdown --json benchmarks/results/slowdown.json
"""

from __future__ import annotations

from functools import partial

from benchmarks.common import EngineDriver, arguments, interleaved, median, prompt_ids, report

MODES = {"deterministic": True, "fast": False}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=32)
    args = parser.parse_args()
    driver = EngineDriver(model=args.model, weights=args.weights)
    rows = []

    def compare(what: str, batch: int, tokens: int, measure: partial[float]) -> None:
        seconds = interleaved(
            {name: partial(measure, deterministic=mode) for name, mode in MODES.items()},
            args.repeats,
        )
        rates = {name: tokens / median(values) for name, values in seconds.items()}
        rows.append(
            {
                "phase": what,
                "batch": batch,
                **{f"{name}_tokens_per_s": rate for name, rate in rates.items()},
                "slowdown": rates["fast"] / rates["deterministic"],
            }
        )

    prompt = prompt_ids(args.prompt_tokens)
    compare("prefill", 1, len(prompt), partial(driver.prefill, prompt))
    for batch in args.batches:
        prompts = [prompt_ids(64, seed) for seed in range(batch)]
        compare("decode", batch, batch, partial(driver.decode, prompts, args.decode_tokens))
    report(
        "deterministic against fast mode",
        rows,
        {
            "model": driver.engine.info.model_name,
            "weights": args.weights,
            "repeats": args.repeats,
        },
        args.json,
    )


if __name__ == "__main__":
    main()
