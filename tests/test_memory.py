"""Peak memory: the weights once, the page pool, and no more than 1 GiB around them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from detinfer.checkpoint.loader import resolve_model

pytestmark = pytest.mark.slow

POOL = 512 << 20
# Fills every page, then prints the peak of the process: VmHWM, since ru_maxrss starts from the
# parent's.
PROGRAM = f"""
import re
from detinfer import LLM, SamplingParams
llm = LLM(weights="WEIGHTS", kv_cache_memory={POOL}, allow_fast=False)
pages = llm.engine.block_manager.num_pages
length = 64 * 16 - 8
prompts = [[1 + i] * length for i in range(pages // 16)]
answers = llm.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True))
assert len(answers) == pages // 16 and all(len(a.token_ids) == 8 for a in answers)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


@pytest.mark.parametrize("kind", ["dequantized", "packed"])
def test_peak_memory(kind: str) -> None:
    program = PROGRAM.replace("WEIGHTS", kind)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout)
    weights = sum(path.stat().st_size for path in resolve_model(weights=kind).weights)
    print(f"peak {peak >> 20} MiB; weights {weights >> 20}, pool {POOL >> 20}")
    assert weights + POOL < peak <= weights + POOL + (1 << 30)
