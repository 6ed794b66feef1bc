"""SGLang's serving benchmark on a detinfer server: sglang_bench_client.py URL.

It prints the benchmark's results, as JSON.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER, RESULTS = Path("sglang-tokenizer"), Path("sglang-results.jsonl")


def save_tokenizer() -> None:
    """One of single bytes: the benchmark makes up prompts with it, and counts its own tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(FOLDER)


def main(url: str, *options: str) -> None:
    save_tokenizer()
    RESULTS.unlink(missing_ok=True)
    command = (
        f"-m sglang.bench_serving --backend sglang --base-url {url} --tokenizer {FOLDER}"
        f" --dataset-name random-ids --num-prompts 6 --random-input-len 48 --random-output-len 12"
        f" --random-range-ratio 0.5 --flush-cache --disable-tqdm"
        f" --output-details --output-file {RESULTS}"
    )
    done = subprocess.run(
        [sys.executable, *command.split(), *options],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},  # it would ask the hub about the folder
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    print(RESULTS.read_text().splitlines()[-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
