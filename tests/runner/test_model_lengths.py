"""The shortest and the longest sequences that can be asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folders import load, write_folder
from tiny_models import make_batch, tiny_config, tokens

from detinfer import LLM, SamplingParams
from detinfer.errors import ConfigError, RequestError
from detinfer.runner.loading import max_model_len

LONGEST = 1 << 20  # positions whose angles the rotary tables are exact for


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 23])
def test_a_short_engine_has_the_bits_of_a_long_one(
    tmp_path: Path, architecture: str, length: int
) -> None:
    folder = write_folder(tmp_path, architecture)
    batch = make_batch([(tokens(length, seed=4), 0, [0])])
    short, long = load(folder, max_model_len=length), load(folder)
    assert short.max_model_len == length
    assert short.plan == long.plan
    found, expected = (np.array(one.forward(batch).numpy()) for one in (short, long))
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))


def test_the_shortest_engine_that_can_answer_does(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path))
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    small = LLM(folder, threads=1, kv_cache_memory=4 << 20, max_model_len=2)
    [answer] = small.generate([[5]], params)
    assert len(answer.token_ids) == 1
    smaller = LLM(folder, threads=1, kv_cache_memory=4 << 20, max_model_len=1)
    with pytest.raises(RequestError, match="maximum context length is 1 token"):
        smaller.generate([[5]], params)


def test_a_model_of_more_positions_than_tables_have_is_served_as_far_as_they_go(
    tmp_path: Path,
) -> None:
    config = tiny_config("llama", max_position_embeddings=2 * LONGEST)
    assert max_model_len(None, config) == LONGEST
    assert max_model_len(LONGEST, config) == LONGEST
    with pytest.raises(
        ConfigError, match=f"max_model_len: got {LONGEST + 1}, expected 1..{LONGEST}"
    ):
        max_model_len(LONGEST + 1, config)
    folder = write_folder(tmp_path, max_position_embeddings=2 * LONGEST)
    assert load(folder).max_model_len == LONGEST
    assert load(folder, max_model_len=100).max_model_len == 100
