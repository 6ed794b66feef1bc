"""A KV cache in bfloat16: the contract's bits in both plans, half the memory, a name of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gguf_samples import gguf_tensors, metadata, tiny_model, write_gguf
from kernel_inputs import before_rounding
from numpy_llama import NumpyLlama
from test_packed_model import IDS, feed

from detinfer import LLM, SamplingParams
from detinfer.backends import portable
from detinfer.checkpoint.loader import ModelFiles, resolve_model
from detinfer.config import EngineConfig
from detinfer.runner.portable import ModelRunner
from detinfer.testing import assert_same_bits, same_bits

POOL = 8 << 20
GREEDY = SamplingParams(max_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Llama with heads of 32, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETINFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        tensors = gguf_tensors(tiny_model("llama", wide=True))
        pairs = metadata("llama", wide=True)
        folder = tmp_path_factory.mktemp("model")
        yield str(write_gguf(folder / "m.gguf", "llama", tensors=tensors, pairs=pairs))


def load(path: str, kept: str = "bfloat16", **settings: Any) -> ModelRunner:
    given = {"threads": 1, "kv_cache_memory": POOL, "kv_cache_dtype": kept, **settings}
    return ModelRunner(EngineConfig(model=path, **given).resolve())


def oracle(path: str, runner: ModelRunner, dtype: str) -> Any:
    table = runner.model.model.rotary_emb.rope_tables[None]
    model = NumpyLlama(
        resolve_model(path).folder, table.cos.numpy(), table.sin.numpy(), cache_dtype=dtype
    )
    return model.logits(IDS)


@pytest.mark.parametrize("plan", ["modules", "fused"])
def test_each_plan_gives_the_contracts_logits_however_it_is_fed(path: str, plan: str) -> None:
    runner = load(path, plan=plan)
    assert runner.plan == plan
    expected = oracle(path, runner, "bfloat16")
    for pieces in ([len(IDS)], [7, 1, 11], [1] * len(IDS)):
        assert_same_bits(feed(runner, pieces), expected, str(pieces))
    assert not same_bits(feed(load(path, "float32", plan=plan), [len(IDS)]), expected)
    np.testing.assert_allclose(expected, oracle(path, runner, "float32"), atol=0.05)


def test_a_step_that_reads_its_own_keys_unrounded_is_found(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: prompt and chunks then differ."""
    runner = load(path, plan="modules")
    monkeypatch.setattr(portable, "attention", before_rounding(portable.attention))
    whole = feed(runner, [len(IDS)])
    assert not same_bits(whole, oracle(path, runner, "bfloat16"))
    assert not same_bits(feed(runner, [7, 1, 11]), whole)


def test_pages_take_half_the_memory_so_that_a_pool_has_twice_as_many(path: str) -> None:
    wide, narrow = load(path, "float32"), load(path)
    assert narrow.num_pages == 2 * wide.num_pages
    for runner in (wide, narrow):
        pools = (*runner.cache.keys, *runner.cache.values)
        assert sum(pool.nbytes for pool in pools) == POOL
    assert load(path, kv_cache_memory=POOL // 2).num_pages == wide.num_pages


def test_the_fingerprint_names_it_where_auto_would_not_choose_it(path: str) -> None:
    auto, same, other = (load(path, dtype) for dtype in ("auto", "float32", "bfloat16"))
    assert auto.fingerprint == same.fingerprint
    assert auto.fingerprint.parts["dtype"] == "float32"
    assert other.fingerprint.parts["dtype"] == "float32, KV cache bfloat16"
    assert other.fingerprint.system_fingerprint != auto.fingerprint.system_fingerprint
    found = [(one.dtype, one.kv_cache_dtype) for one in (auto, same, other)]
    assert found == [("float32", "float32"), ("float32", "float32"), ("float32", "bfloat16")]


def test_activations_in_bfloat16_lose_nothing_by_it(path: str) -> None:
    wide, narrow = (load(path, kept, dtype="bfloat16") for kept in ("float32", "bfloat16"))
    assert_same_bits(feed(narrow, [8, 11]), feed(wide, [8, 11]))


def test_stock_kernels_read_what_was_rounded(path: str) -> None:
    runner = load(path)
    stock = feed(runner, [8, 11], deterministic=False)
    np.testing.assert_allclose(stock, feed(runner, [8, 11]), atol=1e-3)
    for pool in (*runner.cache.keys, *runner.cache.values):
        assert pool.dtype == np.uint16
        assert pool[2].any()


def test_a_value_too_large_for_bfloat16_ends_its_request_and_no_other(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pages of float32 it is a number like any other."""
    right = portable.attention

    def loud(q: Any, k: Any, v: Any, cache: Any, layer: int, batch: Any, **options: Any) -> Any:
        v[torch.from_numpy(batch.positions == 30), 0, 0] = 3.4e38
        return right(q, k, v, cache, layer, batch, **options)

    monkeypatch.setattr(portable, "attention", loud)
    short, long = [5, 6, 7], [9] * 25
    for dtype, reason in (("float32", "length"), ("bfloat16", "error")):
        llm = LLM(path, threads=1, kv_cache_memory=POOL, kv_cache_dtype=dtype, plan="modules")
        [alone] = llm.generate([short], GREEDY)
        beside, ended = llm.generate([short, long], GREEDY)
        assert (beside.finish_reason, beside.digest) == ("length", alone.digest)
        assert ended.finish_reason == reason
        assert ("became NaN" in (ended.error or "")) == (reason == "error")


def test_answers_of_the_default_model_are_these(default_model: ModelFiles) -> None:
    """They move with the contract's version alone."""
    llm = LLM(kv_cache_memory=64 << 20, kv_cache_dtype="bfloat16", allow_fast=False)
    [answer] = llm.generate("The capital of France is", GREEDY)
    assert answer.digest == "38943a6fc8ec4d53d7d2e5c47508fde3242a2e70aee5429a06c9730f93e119cc"
