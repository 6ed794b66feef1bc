"""Fuzz for as long as wanted: python tests/invariance/fuzz.py --steps 1000000 --seed 0 --json FILE

Exit status 1 if an episode fails; the record then holds its seed and its shrunk operations.
"""

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "support"))

import torch  # noqa: E402
from fuzzer import Failure, World, fuzz  # noqa: E402
from tiny_runner import MODELS  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, help="engine steps, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--plan", choices=("fused", "modules"), default="fused")
    parser.add_argument("--model", choices=MODELS, default="windowed")
    parser.add_argument("--kv-cache-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--grammars", action="store_true", help="of some requests, each its own")
    parser.add_argument("--json", type=Path, help="where to write a record of the run")
    args = parser.parse_args()

    torch.set_num_threads(1)
    start, counts, failed = time.monotonic(), {}, None

    def save():
        if args.json:
            record = {
                "command": f"python tests/invariance/fuzz.py --steps {args.steps} "
                f"--seed {args.seed} --plan {args.plan} --model {args.model} "
                f"--kv-cache-dtype {args.kv_cache_dtype}{' --grammars' * args.grammars}",
                "seconds": round(time.monotonic() - start, 1),
                "counts": counts,
                "failure": failed and {"episode": failed.seed, "operations": failed.operations},
            }
            args.json.write_text(json.dumps(record, indent=2) + "\n")

    def progress(total):
        counts.update(total)
        rate = total["steps"] / (time.monotonic() - start)
        print(f"\r{total['steps']:,} of {args.steps:,} steps, {rate:.0f} a second", end="")
        if total["episodes"] % 100 == 0:
            save()  # a run of hours that is interrupted has still shown something

    try:
        options = {"kv_cache_dtype": args.kv_cache_dtype, "grammars": args.grammars}
        world = World(args.plan, args.model, **options)
        fuzz(world, args.steps, args.seed, progress=progress)
    except Failure as failure:
        failed = failure
    print("\n" + (f"{failed}\n" if failed else "") + json.dumps(counts, indent=2))
    save()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
