"""The default model's digests under each version of the contract.

    python tests/support/golden_digests.py

adds a new version's to the record. Those of a version that is in it are never written again:
digests move with the version alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from default_prompts import PROMPTS

from detinfer import LLM, SamplingParams
from detinfer.runner.fingerprint import PORTABLE_CONTRACT, SAMPLER_VERSION

FILE = Path(__file__).parents[1] / "golden_digests.json"
VERSION = f"{PORTABLE_CONTRACT}, sampler {SAMPLER_VERSION}"
WEIGHTS = ("packed", "dequantized")
PARAMS = {
    "greedy": SamplingParams(max_tokens=24),
    "sampled": SamplingParams(max_tokens=24, temperature=0.8, top_p=0.9, seed=7),
}

Record = dict[str, dict[str, dict[str, str]]]


def load(weights: str) -> LLM:
    return LLM(weights=weights, kv_cache_memory=1 << 28, allow_fast=False)


def digests(llm: LLM) -> dict[str, str]:
    """Eight prompts together, answered in two ways."""
    return {
        f"{name}: {prompt}": answer.digest
        for name, params in PARAMS.items()
        for prompt, answer in zip(PROMPTS[:8], llm.generate(PROMPTS[:8], params), strict=True)
    }


def record() -> Record:
    found: Record = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def seal(entry: dict[str, dict[str, str]]) -> str:
    """SHA-256, in hex, of a version's digests."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def main() -> None:
    known = record()
    if VERSION in known:
        raise SystemExit(f"{VERSION} is in the record: digests move with a new version only")
    known[VERSION] = {weights: digests(load(weights)) for weights in WEIGHTS}
    FILE.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    print(f"{VERSION}: {seal(known[VERSION])}")


if __name__ == "__main__":
    main()
