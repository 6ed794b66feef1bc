"""What a weight format costs in quality: loss and divergence, and llama.cpp's from the same file.

    python -m benchmarks.quality --json benchmarks/results/quality.json

The default model's weights are written anew in each format by llama.cpp's own quantiser. Every file
is then read three ways: in its blocks (activations of 8 bits), widened to bfloat16 (activations in
binary32), and by llama.cpp. The text is this repository's own, in windows of 512 tokens. Rows of
576 values hold no block of 256: there llama.cpp puts Q5_0, Q5_1 or Q8_0 for a K-quant. A Markdown
page and a picture go beside the JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import chart, page
from benchmarks.common import ROOT, report
from benchmarks.environments import environment_python
from benchmarks.peers.__main__ import default_gguf
from benchmarks.peers.engine import Peer
from detinfer.batch import Batch
from detinfer.checkpoint.loader import resolve_model
from detinfer.config import EngineConfig
from detinfer.runner.portable import ModelRunner

HERE = Path(__file__).parent
SCRIPT = HERE / "llama_cpp_logits.py"
PUBLISHED = "Q4_1"
FORMATS = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_1", "Q5_0", "Q4_K_M", PUBLISHED, "Q4_0")
TEXTS = ("docs/server.md", "docs/determinism.md", "detinfer/engine/scheduler.py")
WINDOW = 512

# The most that the default model's loss may be above that of its weights with activations in
# binary32, and above llama.cpp's from the same file, in percent.
BOUNDS = {"packed_more_percent": 0.3, "packed_above_llama_cpp_percent": 0.5}

Logits = Callable[[list[int]], Tensor]  # [WINDOW, vocabulary]


def windows(runner: ModelRunner, tokens: int) -> tuple[list[list[int]], str]:
    """Return so many tokens of text, an equal part of each file, cut up; and the text's SHA-256."""
    texts = [(ROOT / name).read_text() for name in TEXTS]
    share = tokens // len(texts) // WINDOW
    ids = [runner.tokenizer(text).input_ids[: share * WINDOW] for text in texts]
    cut = [part[i : i + WINDOW] for part in ids for i in range(0, len(part) - WINDOW + 1, WINDOW)]
    return cut, hashlib.sha256("".join(texts).encode()).hexdigest()


def ours(runner: ModelRunner) -> Logits:
    rows = np.arange(WINDOW, dtype=np.int32)
    pages = np.arange(1, 1 + WINDOW // 64, dtype=np.int32)[None]

    def logits(ids: list[int]) -> Tensor:
        ends = np.array([0, WINDOW], np.int32)
        return runner.forward(Batch(np.array(ids, np.int32), rows, ends, pages, rows))

    return logits


def theirs(peer: Peer) -> Logits:
    def logits(ids: list[int]) -> Tensor:
        return torch.from_numpy(np.load(peer.generate([ids], 0)["file"]))

    return logits


# What each reading of a file is compared with.
BASELINES = {"binary32": "published", "packed": "binary32", "llama.cpp": "binary32"}
KL = {"binary32": "kl_from_published", "packed": "packed_kl", "llama.cpp": "llama_cpp_kl"}


def measure(models: dict[str, Logits], texts: list[list[int]]) -> dict[str, dict[str, float]]:
    """Return each model's loss, its KL(baseline, model) and share of equal likeliest tokens."""
    sums = {name: {"loss": 0.0, "kl": 0.0, "same": 0.0} for name in BASELINES}
    for ids in texts:
        # Each is kept in binary32, as it is told: wider ones would take most of the time.
        logs = {name: model(ids).log_softmax(-1) for name, model in models.items()}
        for name, baseline in BASELINES.items():
            mine, other = logs[name], logs[baseline]
            sums[name]["loss"] -= float(mine[torch.arange(WINDOW - 1), ids[1:]].double().mean())
            divergences = (other.exp() * (other - mine)).sum(-1)
            sums[name]["kl"] += float(divergences.double().mean())
            sums[name]["same"] += float((other.argmax(-1) == mine.argmax(-1)).double().mean())
    return {n: {of: value / len(texts) for of, value in one.items()} for n, one in sums.items()}


def load(path: Path | None, weights: str) -> ModelRunner:
    config = EngineConfig(model=path and str(path), weights=weights, kv_cache_memory=1 << 28)
    return ModelRunner(config.resolve())


def make(python: Path, source: Path, name: str) -> Path:
    """Return the model in a format: its own as published, another by llama.cpp."""
    if name == PUBLISHED:
        return source
    path = source.with_name(f"{name}.gguf")
    command = [python, SCRIPT, "quantize", source, path, name]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stdout.strip().splitlines()[-1]}")
    return path


def row(
    name: str, path: Path, python: Path, published: ModelRunner, texts: list[list[int]]
) -> dict[str, Any]:
    """Read one file three ways."""
    packed, widened = load(path, "packed"), load(path, "dequantized")
    peer = Peer(python, SCRIPT, str(path), path.with_suffix(".log"))
    try:
        peer.wait_loaded()
        models = {"published": ours(published), "binary32": ours(widened), "packed": ours(packed)}
        found = measure(models | {"llama.cpp": theirs(peer)}, texts)
    finally:
        peer.close()
    losses = {of: one["loss"] for of, one in found.items()}
    return {
        "format": name,
        "kept": packed.fingerprint.parts["weight_format"].split(",")[0].removeprefix("packed "),
        "MB": path.stat().st_size / 1e6,
        "loss_binary32": losses["binary32"],
        "kl_from_published": found["binary32"]["kl"],
        "loss_packed": losses["packed"],
        "packed_more_percent": 100 * (losses["packed"] / losses["binary32"] - 1),
        "packed_kl": found["packed"]["kl"],
        "packed_same_top": found["packed"]["same"],
        "loss_llama_cpp": losses["llama.cpp"],
        "llama_cpp_kl": found["llama.cpp"]["kl"],
        "packed_above_llama_cpp_percent": 100 * (losses["packed"] / losses["llama.cpp"] - 1),
    }


def forget(path: Path) -> None:
    """Remove a file that was made for this, and what the cache has of it."""
    for weights in ("packed", "dequantized"):
        shutil.rmtree(resolve_model(str(path), weights=weights).folder)
    path.unlink()


def parts(rows: list[dict[str, Any]], extra: dict[str, Any]) -> list[str]:
    """Return the page's parts, as Markdown."""
    made = [
        f"{extra['tokens']:,} tokens of {', '.join(extra['texts'])}, in windows of {WINDOW}. Loss "
        "is a token's, KL that of the column's reading: of binary32 from the published weights, of "
        "packed and llama.cpp from binary32.",
        page.table([{name: _figure(name, value) for name, value in r.items()} for r in rows]),
    ]
    for one in (row for row in rows if row["format"] == PUBLISHED):
        made += [
            f"{PUBLISHED}, the default model's: {name.replace('_', ' ')}: {one[name]:.2f}, "
            f"{'within' if one[name] <= bound else '**not within**'} {bound}."
            for name, bound in BOUNDS.items()
        ]
    return made


def _figure(name: str, value: Any) -> Any:
    digits = 4 if name.startswith("loss") else 3 if "percent" in name else None
    return value if digits is None else f"{value:.{digits}f}"


def picture(rows: list[dict[str, Any]]) -> str:
    """Draw how far each reading of each file is from what it is compared with."""
    panels: dict[str, list[chart.Bar]] = {}
    for row in rows:
        panels[row["format"]] = []
        for name, key in KL.items():
            kl = 10_000 * row[key]
            panels[row["format"]].append(chart.Bar(name, kl, kl, kl, name == "packed"))
    return chart.bars("KL divergence, ten-thousandths of a nat", panels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=9216, help="of the text")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--json", type=Path, help="write results here, a page and a picture beside")
    args = parser.parse_args()
    python = environment_python(ROOT / "benchmarks/peers/requirements/llama_cpp.txt")
    published = load(None, "dequantized")
    texts, digest = windows(published, args.tokens)
    rows, start = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        source = default_gguf(Path(folder))
        for number, name in enumerate(args.formats, 1):
            path = make(python, source, name)
            rows.append(row(name, path, python, published, texts))
            if path != source:
                forget(path)
            done = f"{number} of {len(args.formats)}, {time.monotonic() - start:.0f} s"
            print(f"{name}: {done}", file=sys.stderr)
    extra = {"texts": TEXTS, "sha256": digest, "tokens": len(texts) * WINDOW}
    result = report("quality of weight formats", rows, extra, args.json)
    if args.json:
        page.write(args.json, result, parts(rows, extra), picture(rows))


if __name__ == "__main__":
    main()
