"""What a start says: lines of our own and no others, whatever libraries and the cache are like."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from detinfer.kernels.cpu import jit

COMPILING = (
    r"compiling kernels for this CPU \(once\)|compiled \d+ kernels? in |\S+: damaged kernel, "
)
OURS = re.compile(rf"detinfer: ({COMPILING})|digest [0-9a-f]{{64}}  detinfer-")
# What libraries print in the engine's process is logged as ours: what it says must be ours too.
LOGGED = re.compile(
    rf"\S+Z INFO detinfer: (loading the model; |{COMPILING}|ready on |shutting down: )"
)
COMMAND = (sys.executable, "-m", "detinfer.cli")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama of one layer, and a tokenizer of one word."""
    path = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=131, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(path)
    return str(path)


def generate(folder: str, *flags: str, **environment: str) -> list[str]:
    """The lines on stderr; the last is the digest's."""
    done = subprocess.run(
        [*COMMAND, "generate", folder, "--prompt", "a a", "--max-tokens", "3", *flags],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def first_lines(folder: str) -> list[str]:
    return generate(folder)


def test_generate_says_nothing_but_our_own_lines(first_lines: list[str]) -> None:
    assert first_lines[-1].startswith("digest ")
    assert [line for line in first_lines if not OURS.match(line)] == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_serve_says_nothing_but_our_own_lines(folder: str, dtype: str) -> None:
    lines, flags = [], ("--kv-cache-dtype", dtype)
    process = subprocess.Popen(
        [*COMMAND, "serve", folder, "--port", "0", "--no-access-log", *flags],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if ready := re.search(r"ready on (http://\S+)", line):
                body = {"prompt": "a a", "max_tokens": 3, "temperature": 1}
                assert httpx.post(f"{ready[1]}/generate", json=body, timeout=120).is_success
                body["temperature"] = 0
                answer = httpx.post(f"{ready[1]}/generate", json=body, timeout=120).json()
                engine = httpx.get(f"{ready[1]}/server_info", timeout=120).json()["engine"]
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
        process.communicate()
    assert any("ready on" in line for line in lines)
    assert [line for line in lines if not LOGGED.match(line)] == []
    assert engine["kv_cache_dtype"] == dtype
    told = f"digest {answer['digest']}  {answer['system_fingerprint']}  length"
    assert generate(folder, *flags)[-1] == told


@pytest.mark.parametrize(
    "line",
    [
        "/lib/transformers/x.py:5: FutureWarning: `past_key_values` is deprecated",
        "`loss_type=None` was set in the config but it is unrecognised.",
        "2026-11-28T14:01:27.541Z INFO detinfer: `loss_type=None` was set in the config",
        "2026-11-28T14:01:27.541Z WARNING py.warnings: x.py:5: FutureWarning: deprecated",
    ],
)
def test_a_librarys_line_is_not_ours(line: str) -> None:
    assert not OURS.match(line)
    assert not LOGGED.match(line)


def test_a_start_outlives_every_damage_to_its_cache(
    folder: str, first_lines: list[str], tmp_path: Path
) -> None:
    kernels = tmp_path / "kernels" / jit._FOLDER.name
    shutil.copytree(jit._FOLDER, kernels)

    def damage(name: str, change: str) -> str:
        (path, *_) = sorted(kernels.glob(f"{name}-*.kernel"))
        content = bytearray(path.read_bytes())
        if change == "cut":
            del content[len(content) // 2 :]
        elif change == "zeros":
            content[:] = bytes(len(content))
        else:
            content[len(content) // 2] ^= 16
        path.write_bytes(content)
        return f"detinfer: {path}: damaged kernel, dropped: compiling anew"

    expected = {
        damage("rounding.enter", "cut"),
        damage("rounding.leave", "zeros"),
        damage("matmul.embedding", "flip"),
    }
    lines = generate(folder, DETINFER_CACHE=str(tmp_path))
    assert {line for line in lines if "damaged" in line} == expected
    assert [line for line in lines if not OURS.match(line)] == []
    assert lines[-1] == first_lines[-1]
    assert generate(folder, DETINFER_CACHE=str(tmp_path)) == [first_lines[-1]]
