"""A model that runs from its file's own blocks: rule 1q bit for bit, however it is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_samples import gguf_tensors, metadata, tiny_model, write_gguf
from kernels_anew import step_anew
from numpy_llama import NumpyLlama

from detinfer.batch import Batch
from detinfer.checkpoint.loader import resolve_model
from detinfer.config import EngineConfig
from detinfer.kernels.constants import BLOCK_FORMATS
from detinfer.runner import portable_fused
from detinfer.runner.portable import ModelRunner
from detinfer.testing import assert_same_bits, same_bits

IDS = [5, 17, 3, 99, 42, 7, 260, 1, 8, 90, 61, 33, 12, 12, 200, 4, 77, 128, 31]
# What people download: most weights in one format, some in a finer one.
Q4_K_M = {"blk.0.ffn_down.weight": Kind.Q6_K, "output.weight": Kind.Q6_K}


def write(folder: Path, kind: Kind, arch: str = "llama", tied: bool = False, **options: Any) -> str:
    tensors = gguf_tensors(tiny_model(arch, tied, wide=True))
    pairs = metadata(arch, wide=True)
    path = folder / f"{arch}.gguf"
    return str(write_gguf(path, arch, tensors=tensors, pairs=pairs, kind=kind, **options))


def load(path: str, **settings: Any) -> ModelRunner:
    given: dict[str, Any] = {"weights": "packed", "threads": 1, "kv_cache_memory": 8 << 20}
    return ModelRunner(EngineConfig(model=path, **given | settings).resolve())


def feed(
    runner: ModelRunner, pieces: list[int], deterministic: bool = True
) -> npt.NDArray[np.float32]:
    """Logits of all positions, fed piece by piece on fresh pages."""
    logits, start = [], 0
    for size in pieces:
        rows = np.arange(size, dtype=np.int32)
        batch = Batch(
            input_ids=np.array(IDS[start : start + size], np.int32),
            positions=rows + start,
            query_start=np.array([0, size], np.int32),
            block_tables=np.array([[2]], np.int32),
            logit_rows=rows,
            deterministic=deterministic,
        )
        logits.append(runner.forward(batch).numpy().copy())
        start += size
    return np.concatenate(logits)


def oracle(path: str, runner: ModelRunner, weights: str = "packed") -> npt.NDArray[np.float32]:
    table = runner.model.model.rotary_emb.rope_tables[None]
    folder = resolve_model(path, weights=weights).folder
    return NumpyLlama(folder, table.cos.numpy(), table.sin.numpy()).logits(IDS)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_logits_are_the_contracts(tmp_path: Path, cache: Path, name: str) -> None:
    path = write(tmp_path, Kind[name])
    runner = load(path)
    assert runner.plan == "fused"
    expected = oracle(path, runner)
    assert np.isfinite(expected).all()
    assert_same_bits(feed(runner, [len(IDS)]), expected)
    assert_same_bits(feed(runner, [1] * len(IDS)), expected)
    assert_same_bits(feed(runner, [7, 1, 11]), expected)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_architectures_biases_mixed_formats_and_tied_heads(
    tmp_path: Path, cache: Path, arch: str, tied: bool
) -> None:
    path = write(tmp_path, Kind.Q4_K, arch, tied, kinds=Q4_K_M)
    runner = load(path)
    head, table = (m.leaf for m in (runner.model.lm_head, runner.model.model.embed_tokens))
    assert (head is table) == tied
    assert head.packed.storage == ("Q4_K" if tied else "Q6_K")
    assert_same_bits(feed(runner, [8, 11]), oracle(path, runner))


def test_what_is_stored_otherwise_is_multiplied_by_rule_1(tmp_path: Path, cache: Path) -> None:
    kinds = {
        "output.weight": Kind.F16,
        "blk.0.attn_q.weight": Kind.Q2_K,
        "blk.1.ffn_up.weight": Kind.F32,
    }
    path = write(tmp_path, Kind.Q8_0, kinds=kinds)
    runner = load(path)
    assert_same_bits(feed(runner, [8, 11]), oracle(path, runner))


def test_widened_weights_give_other_bits(tmp_path: Path, cache: Path) -> None:
    """The negative control: the comparison above tells rule 1q from rule 1."""
    path = write(tmp_path, Kind.Q4_1)
    packed, widened = load(path), load(path, weights="dequantized")
    got = feed(widened, [len(IDS)])
    assert_same_bits(got, oracle(path, widened, "dequantized"))
    assert not same_bits(got, feed(packed, [len(IDS)]))
    np.testing.assert_allclose(got, feed(packed, [len(IDS)]), atol=0.05)
    assert packed.fingerprint.system_fingerprint != widened.fingerprint.system_fingerprint
    assert packed.fingerprint.parts["weight_format"] == "packed Q4_1, float32 from gguf F32"


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_bit(tmp_path: Path, cache: Path, threads: int) -> None:
    path = write(tmp_path, Kind.Q6_K)
    assert_same_bits(feed(load(path, threads=threads), [19]), feed(load(path), [19]))


def test_a_fast_step_multiplies_the_numbers_that_the_blocks_stand_for(
    tmp_path: Path, cache: Path
) -> None:
    path = write(tmp_path, Kind.Q5_1)
    runner = load(path)
    table = runner.model.model.embed_tokens.leaf
    assert table._stock is None
    got = feed(runner, [len(IDS)], deterministic=False)
    assert_same_bits(table.stock(torch.float32)[IDS], runner_rows(runner))
    widened = feed(load(path, weights="dequantized"), [len(IDS)], deterministic=False)
    np.testing.assert_allclose(got, widened, atol=0.02)  # that one has weights of bfloat16


def runner_rows(runner: ModelRunner) -> npt.NDArray[np.float32]:
    packed = runner.model.model.embed_tokens.leaf.packed
    out = np.empty((len(IDS), packed.k), np.float32)
    packed.rows(np.array(IDS), out)
    return out


# One linear of each that share their rows is no blocks, and one whose rows another one makes.
MIXED = {
    "blk.0.attn_q.weight": Kind.F16,
    "blk.0.ffn_down.weight": Kind.F32,
    "blk.1.ffn_up.weight": Kind.F32,
    "blk.1.attn_output.weight": Kind.BF16,
}


@pytest.mark.parametrize("kinds", [{}, Q4_K_M, MIXED], ids=["one", "Q4_K_M", "mixed"])
def test_both_plans_give_the_same_bits(tmp_path: Path, cache: Path, kinds: dict[str, Kind]) -> None:
    path = write(tmp_path, Kind.Q4_K, kinds=kinds)
    fused, modules = load(path, plan="fused", threads=2), load(path, plan="modules")
    assert (fused.plan, modules.plan, load(path).plan) == ("fused", "modules", "fused")
    expected = feed(modules, [len(IDS)])
    for pieces in ([len(IDS)], [7, 1, 11], [1] * len(IDS)):
        assert_same_bits(feed(fused, pieces), expected, str(pieces))


@pytest.mark.parametrize("plan", ["modules", "fused"])
def test_each_plan_gives_the_contracts_logits(tmp_path: Path, cache: Path, plan: str) -> None:
    path = write(tmp_path, Kind.Q5_K, "qwen3", kinds=Q4_K_M)
    runner = load(path, plan=plan)
    assert runner.plan == plan
    assert_same_bits(feed(runner, [8, 11]), oracle(path, runner))


def test_sixteen_bit_activations_do_not_depend_on_the_batch(tmp_path: Path, cache: Path) -> None:
    runner = load(write(tmp_path, Kind.Q4_1), dtype="bfloat16")
    assert_same_bits(feed(runner, [7, 1, 11]), feed(runner, [len(IDS)]))


@pytest.mark.slow  # compiles the fused step
def test_a_plan_that_quantises_for_queries_alone_is_not_trusted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where keys are in blocks and queries are not, no row is quantised; the load tells."""
    old = "packed = max(layer[Q + TILE], layer[K + TILE], layer[V + TILE]) > BFLOAT16"
    kernel = step_anew((old, "packed = layer[Q + TILE] > BFLOAT16"))
    path = write(tmp_path, Kind.Q4_0, kinds={"blk.0.attn_q.weight": Kind.F16})
    assert load(path, plan="fused").plan == "fused"
    monkeypatch.setattr(portable_fused, "kernel", kernel)
    assert load(path).plan == "modules"
