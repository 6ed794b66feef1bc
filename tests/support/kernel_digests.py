"""Prints, as JSON, a SHA-256 of the outputs of each kernel family on fixed inputs.

Those of packed weights are compared with the reference here, at every number of rows up to 70.

A process of its own for test_instruction_sets.py: Numba reads its target CPU when first imported.
"""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import torch
from packed_samples import FORMATS, extreme_blocks, random_blocks
from recursive_models import CONFIGS, boards_of, weights_of
from tiny_runner import TinyModelRunner

from detinfer import ops
from detinfer.backends import portable
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.engine.llm import LLM
from detinfer.kernels import reference, reference_packed
from detinfer.kernels.constants import BLOCK_FORMATS
from detinfer.kernels.cpu import matmul, microkernel
from detinfer.kernels.cpu.latent_noise import add_noise
from detinfer.kernels.cpu.packed import linear as packed
from detinfer.kernels.cpu.packed.dot import dot_product
from detinfer.kernels.cpu.packed.rows import quantised_bytes
from detinfer.params import SamplingParams
from detinfer.recursive.model import RecursiveModel
from detinfer.sampling import SamplingRow, choose, summarise
from detinfer.testing import SPECIAL, assert_same_bits, bits, rounded_normal, to_torch

# Of a row, by values of a format's block: one block, odd numbers of them, and each way to cut it.
DEPTHS = {32: (32, 96, 512, 544, 1504), 256: (256, 768, 1024)}
WIDTHS = (1, 63, 65, 130)


def linears(rng):
    for depth in (7, 192, 576):
        x, w = rounded_normal(rng, (9, depth)), rounded_normal(rng, (130, depth), "bfloat16")
        x[0, : min(depth, len(SPECIAL))] = SPECIAL[:depth]
        for weight in (ops.pack(to_torch(w)), ops.pack(to_torch(w * np.float32(1.1)))):
            for m in (1, 2, 4, 5, 9):
                yield ops.linear(to_torch(x[:m]), weight)
            yield ops.embedding(torch.arange(130), weight, torch.float32)


def packed_linears(rng):
    for name in FORMATS:
        for k in DEPTHS[BLOCK_FORMATS[name][0]]:
            raw, x = random_blocks(rng, name, 130, k), rounded_normal(rng, (70, k))
            x[0], x[1, : len(SPECIAL)] = 127, SPECIAL
            for n in WIDTHS:
                yield _compared(raw[:n], name, k, x)
            blocks = reference_packed.unpack(raw, name)
            rows, weight = np.empty((130, k), np.float32), packed.pack(raw, name, 130, k)
            weight.rows(np.arange(130), rows)
            assert_same_bits(rows, reference_packed.rows(blocks), f"rows of {name}, k={k}")
            yield rows
        for fill in (0x7F, 0xFF):
            yield _compared(
                extreme_blocks(name, 17, 256, fill), name, 256, np.sign(x[:7, :256]) * 127
            )


def _compared(raw, name, k, x):
    """The reference's result, which each number of rows gave, one to three threads in turn."""
    weight = packed.pack(raw, name, len(raw), k)
    expected = reference_packed.linear(x, reference_packed.unpack(raw, name))
    for m in range(1, len(x) + 1):
        out = np.full((m, weight.n), np.nan, np.float32)
        scratch = np.empty(m * quantised_bytes(weight.k), np.uint8)
        packed.linear(1 + m % 3, x[:m], scratch, weight.address, weight.panel_bytes, weight.tile,
                      weight.n, 0, out)  # fmt: skip
        assert_same_bits(out, expected[:m], f"{name}, {m} x {weight.n} x {k}")
    return expected


def norms(rng):
    x, w = to_torch(rounded_normal(rng, (9, 100))), to_torch(rounded_normal(rng, (100,)))
    for variant in ops.RMS_VARIANTS:
        yield ops.rms_norm(x, w, 1e-5, variant)
    yield ops.layer_norm(x, w, w, 1e-5)


def activations(rng):
    patterns = np.arange(0, 2**32, 99991, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = torch.from_numpy(np.concatenate([patterns, rounded_normal(rng, (10_003,), scale=5.0)]))
    for name in sorted(reference.ACTIVATIONS):
        yield ops.activation(name, x)
    yield ops.silu_mul(x, x.flip(0))
    yield ops.gelu_tanh_mul(x, x.flip(0))


def logits(rng):
    x = rounded_normal(rng, (3, 5001), scale=4.0)
    yield ops.softmax(to_torch(x))
    yield ops.log_softmax(to_torch(x))
    yield from portable.summarise(to_torch(x))


def attentions(rng):
    for kept in (torch.float32, torch.bfloat16):
        yield from attended(rng, ops.KVCache([ops.LayerCacheSpec(2, 24, 17)], 12, kept=kept))


def attended(rng, cache):
    table = np.array([[3, 7, 1, 9, 2, 11, 5, 8, 4, 6]], np.int32)
    for start, stop in ((0, 70), (70, 71), (71, 550), (550, 551)):
        tokens = stop - start
        positions = np.arange(start, stop, dtype=np.int32)
        batch = ops.BatchTensors(positions, np.array([0, tokens], np.int32), table)
        q, k, v = (
            to_torch(rounded_normal(rng, (tokens, *shape))) for shape in ((4, 24), (2, 24), (2, 17))
        )
        options = ({}, {"window": 65}, {"softcap": 5.0}, {"sinks": torch.ones(4)})
        for option in options:
            yield ops.attention(q, k, v, cache, 0, batch, scale=0.3, **option)


def recursive_steps(rng):
    """One supervision step of every mixer, with whichever plan a model takes."""
    for config in CONFIGS.values():
        model = RecursiveModel("digests", config, weights_of(config))
        y, z = model.start(3)
        yield from (*model.step(boards_of(config, 3), y, z), y, z)


def samples(rng):
    logits = torch.from_numpy(rounded_normal(rng, (40, 5001), scale=2.0))
    params = SamplingParams(temperature=0.8, top_k=2000, top_p=0.95, min_p=0.001)
    nothing = np.empty(0, np.int64)
    rows = [SamplingRow(params, 2**63 + i, i, nothing) for i in range(40)]
    yield np.array(choose(logits, summarise(logits)[0], rows))


def rollout_noise(rng):
    z = rounded_normal(rng, (5001,))
    for seed, rollout, step in ((0, 1, 1), (2**64 - 1, 63, 1024)):
        add_noise(z, np.uint64(seed), np.uint64(rollout), np.uint64(step), np.float32(0.3))
        yield z


def embeddings(rng):
    """Vectors of prompts that a whole fused step read, in chunks, and their scores."""
    for model in ("windowed", "packed"):
        runner = TinyModelRunner(12, model=model, redrawn=True)
        engine = Engine(EngineConfig(max_num_batched_tokens=50), runner)
        prompts = [rng.integers(3, 131, size).tolist() for size in (1, 70, 150)]
        for pooling in ("mean", "last"):
            llm = LLM(engine=engine)
            yield from (one.vector for one in llm.embed(prompts, pooling=pooling))
            found = llm.score(prompts[:1], prompts, pooling=pooling)
            yield np.array([one.score for one in found], np.float32)


def stock(rng):
    """PyTorch's own kernels on the same kinds of input: what must not be equal."""
    x, w = to_torch(rounded_normal(rng, (9, 576))), to_torch(rounded_normal(rng, (130, 576)))
    yield torch.nn.functional.linear(x, w)
    yield torch.nn.functional.rms_norm(x, (576,))
    yield torch.log_softmax(x, -1)
    yield torch.nn.functional.gelu(x)


FAMILIES = (
    *(linears, packed_linears, norms, activations, logits, attentions),
    *(recursive_steps, samples, rollout_noise, embeddings, stock),
)


def main() -> None:
    digests = {}
    for family in FAMILIES:
        digest = hashlib.sha256()
        for output in family(np.random.default_rng(0)):
            digest.update(bits(output).tobytes())
        digests[family.__name__] = digest.hexdigest()
    answer = {"stock": digests.pop("stock"), "digests": digests, "code": machine_code()}
    print(json.dumps(answer))


def machine_code() -> dict[str, object]:
    """What the compiled linear kernels are made of, to show that the target CPU was heard."""
    assembly = "".join(matmul.linear.inspect_asm().values())
    code: dict[str, object] = {name: name in assembly for name in ("zmm", "ymm", "vfmadd")}
    return code | {"integers": type(dot_product(None, 4)).__name__, "spills": spills()}


def spills() -> bool:
    """Whether matrix tiles move vectors to the stack and back as if registers were too few."""
    tiles = (microkernel.tile_f32, microkernel.tile_bf16)
    assembly = "".join(text for tile in tiles for text in tile.inspect_asm().values())
    moved = re.findall(r"\(%rsp\), %[xyz]mm|%[xyz]mm\d+, \d*\(%rsp\)", assembly)
    return len(moved) > len(re.findall(r"\bvfmadd", assembly)) // 4


if __name__ == "__main__":
    main()
