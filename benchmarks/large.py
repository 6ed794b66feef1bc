"""A larger model from its file's blocks: time to load, memory, share of bandwidth at decode.

    python -m benchmarks.large_gguf LARGE.gguf && python -m benchmarks.large LARGE.gguf

The file is loaded by two processes one after the other. The first finds an empty cache: it compiles
the kernels and converts the file. The second is warm; it decodes, one token a step, and then reads
memory as fast as this machine can with as many threads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import report

GIB = 1 << 30
POOL = 1 << 28  # bytes of KV cache
PROMPT, TOKENS = 64, 33


def status(name: str) -> int:
    """Return a line of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"/proc/self/status has no {name}")


def child(path: str, started: float, repeats: int) -> dict[str, Any]:
    """Load the file; with ``repeats`` decode, and measure the machine."""
    from benchmarks.common import EngineDriver, median, prompt_ids

    driver = EngineDriver(model=path, weights="packed", kv_cache_memory=POOL, allow_fast=False)
    found: dict[str, Any] = {"load_s": time.time() - started, "peak": status("VmHWM")}
    if repeats:
        from benchmarks.limits import measure
        from benchmarks.roofline import Model
        from detinfer.checkpoint.loader import resolve_model

        prompt = prompt_ids(PROMPT)
        seconds = [driver.decode([prompt], TOKENS, True) for _ in range(repeats + 1)][1:]
        model = Model.read(resolve_model(path, weights="packed").folder)
        found |= {"peak": status("VmHWM"), "seconds": median(seconds)}
        found["bytes"] = model.decode(1, PROMPT + TOKENS / 2).bytes
        found["bandwidth"] = measure().bandwidth
    return found


def start(path: Path, cache: str, repeats: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.large", path, "--child", str(time.time())]
    environment = os.environ | {"DETINFER_CACHE": cache}
    done = subprocess.run(
        [*command, "--repeats", str(repeats)], env=environment, stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a GGUF file: benchmarks.large_gguf makes one")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--json", type=Path, help="write results here")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(str(args.file), args.child, args.repeats)))
        return
    with tempfile.TemporaryDirectory(dir=args.file.parent) as cache:
        cold, warm = start(args.file, cache, 0), start(args.file, cache, args.repeats)
    size = args.file.stat().st_size
    row = {
        "file_GB": size / 1e9,
        "cold_load_s": cold["load_s"],
        "load_s": warm["load_s"],
        "cold_peak_above_file_and_pool_GiB": (cold["peak"] - size - POOL) / GIB,
        "peak_above_file_and_pool_GiB": (warm["peak"] - size - POOL) / GIB,
        "decode_tokens_s": 1 / warm["seconds"],
        "read_a_token_GB": warm["bytes"] / 1e9,
        "bandwidth_GB_s": warm["bandwidth"] / 1e9,
        "share_of_bandwidth": warm["bytes"] / warm["seconds"] / warm["bandwidth"],
    }
    report("a larger model", [row], {"repeats": args.repeats, "pool": POOL}, args.json)


if __name__ == "__main__":
    main()
