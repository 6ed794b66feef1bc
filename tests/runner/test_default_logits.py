"""The default model's full logits, bit for bit, however its tokens are fed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from detinfer.batch import Batch
from detinfer.checkpoint.loader import ModelFiles
from detinfer.config import EngineConfig
from detinfer.runner.portable import ModelRunner
from detinfer.testing import assert_same_bits, same_bits

TEXT = "Reproducible answers: 1) fix the order of every sum; 2) test it. " * 5


@pytest.fixture(scope="module", params=["dequantized", "packed"])
def runner(default_model: ModelFiles, request: pytest.FixtureRequest) -> ModelRunner:
    return ModelRunner(EngineConfig(weights=request.param, kv_cache_memory=1 << 28).resolve())


@pytest.fixture(scope="module")
def ids(runner: ModelRunner) -> list[int]:
    ids: list[int] = runner.tokenizer(TEXT).input_ids
    assert len(ids) > 80  # crosses a page
    return ids


def feed(
    runner: ModelRunner, ids: list[int], pieces: list[int], deterministic: bool = True
) -> npt.NDArray[np.float32]:
    """Logits of all positions, fed piece by piece on fresh pages."""
    logits, start = [], 0
    for size in pieces:
        rows = np.arange(size, dtype=np.int32)
        batch = Batch(
            input_ids=np.array(ids[start : start + size], np.int32),
            positions=rows + start,
            query_start=np.array([0, size], np.int32),
            block_tables=np.array([[7, 3, 5]], np.int32),
            logit_rows=rows,
            deterministic=deterministic,
        )
        logits.append(runner.forward(batch).numpy().copy())
        start += size
    assert start == len(ids)
    return np.concatenate(logits)


@pytest.mark.parametrize("prefill", [1, 63, 64, 70])
def test_prefill_then_decode_is_one_prefill(
    runner: ModelRunner, ids: list[int], prefill: int
) -> None:
    whole = feed(runner, ids, [len(ids)])
    assert_same_bits(feed(runner, ids, [prefill] + [1] * (len(ids) - prefill)), whole)


def test_stock_kernels_fail_the_same_comparison(runner: ModelRunner, ids: list[int]) -> None:
    whole = feed(runner, ids, [len(ids)], deterministic=False)
    decoded = feed(runner, ids, [64] + [1] * (len(ids) - 64), deterministic=False)
    assert not same_bits(decoded, whole)


def test_fused_is_the_default_plan(runner: ModelRunner) -> None:
    assert runner.plan == "fused"
