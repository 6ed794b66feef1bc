"""Every GPU check and measurement in one command, for a bare machine with one GPU.

python -m benchmarks.gpu_suite --out benchmarks/results

Writes ``gpu_suite.json`` there, section by section; run again, it goes on where it stopped. No
model is fetched: weights are random, in real models' shapes. ``--smoke`` proves the suite's own
code on a CPU, in Triton's interpreter, at tiny shapes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

# A group of sections by letter: bits, kernels' speed, slowdown end to end.
GROUPS = {"a": ("bits", "engine"), "b": ("perf",), "c": ("slowdown",)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--only", default="", help="a, b, c or names such as bits.linear, with commas between"
    )
    parser.add_argument("--budget", type=float, default=540, help="seconds")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--commit", help="of the sources, where git is not there to tell")
    parser.add_argument("--keep-errors", action="store_true", help="what failed is not run again")
    return parser.parse_args()


def main() -> int:
    started = time.monotonic()
    args = arguments()
    if args.smoke:
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
        from benchmarks.interpreter import install

        install()
    from benchmarks.gpu import bench, report  # after the interpreter: they import kernels

    suite, device, late = open_suite(args)
    only = [word for word in args.only.split(",") if word]
    budget = args.budget - (time.monotonic() - started)
    try:
        suite.run(bench.Bench(device, args.smoke), bench.choose(only, GROUPS), budget, _say)
    except bench.DeviceLostError as error:
        _say(f"the device is lost to this process ({error}); going on in another")
        _go_on(args, args.budget - (time.monotonic() - started))
    suite.document["bars"] = [] if args.smoke else report.judge(suite.results())
    suite.document["compiled_late"] = late
    suite.document["total_seconds"] = round(time.monotonic() - started, 1)
    suite.write()
    print(report.summary(suite.document))
    return 0


def open_suite(args: argparse.Namespace) -> tuple[Any, Any, list[str]]:
    """Return the results so far, the device to measure, and the kernels compiled late.

    Registers the sections.
    """
    import torch

    from benchmarks.gpu import (  # noqa: F401
        attention_bits,
        bench,
        bits,
        compiling,
        device,
        drafts,
        engine,
        kernel_speed,
        linear_speed,
    )

    target = torch.device("cpu" if args.smoke else "cuda")
    machine = device.machine_facts()
    identity = {
        "commit": args.commit or machine.get("commit"),
        "sources": bench.sources_digest(),
        "smoke": args.smoke,
        "gpu": device.gpu_facts(target)["gpu"],
    }
    about = {"benchmark": "gpu suite", "smoke": args.smoke, "machine": machine}
    path = args.out / "gpu_suite.json"
    return bench.Suite(path, identity, about, args.keep_errors), target, compiling.use_cache()


def _go_on(args: argparse.Namespace, budget: float) -> None:
    """Replace this process by one that does the rest."""
    given = ["--out", str(args.out), "--only", args.only, "--budget", f"{budget:.0f}"]
    given += ["--commit", args.commit] if args.commit else []
    command = [sys.executable, "-m", "benchmarks.gpu_suite", *given, "--keep-errors"]
    os.execv(sys.executable, command)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
