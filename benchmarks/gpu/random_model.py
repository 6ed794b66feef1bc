"""Runners over real configurations with random weights: nothing is read from files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.sizes import Model
from detinfer.config import EngineConfig
from detinfer.models.attention import ATTN_IMPLEMENTATION
from detinfer.runner.native import NativeRunner, Source


class _Backend:
    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """None are special."""
        return {}

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return " " * len(token_ids)


class Tokenizer:
    """Stands in where no text is wanted: a space a token."""

    backend_tokenizer = _Backend()


def random_runner(bench: Bench, model: Model, cache_bytes: int, seed: int = 0) -> NativeRunner:
    """Return a runner whose every weight is normal, its norms 1, and its stale pages NaN.

    The model is built over pages of zeros that the host never touches, packed onto the device, and
    filled there: 16 GB travel once, at the speed of a copy, and no memory of the host is taken.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(
            model.config(), attn_implementation=ATTN_IMPLEMENTATION, dtype=torch.bfloat16
        )
    _give_memory(built)
    described = json.dumps({"random": model.name, "seed": seed, "deviation": bench.sizes.deviation})
    parts = dict.fromkeys(("weights", "weight_format", "tokenizer", "config"), described)
    source = Source(built, Tokenizer(), f"{model.name}, random weights", torch.bfloat16, parts)
    config = EngineConfig(
        numerics="native",
        device=bench.device.type,
        plan="fused",
        kv_cache_memory=cache_bytes,
        max_model_len=bench.sizes.max_model_len,
    )
    runner = NativeRunner(config.resolve(), source)
    _fill(runner, bench.sizes.deviation, bench.generator(seed))
    for pages in (*runner.cache.keys, *runner.cache.values):
        pages.fill_(float("nan"))
    return runner


def _give_memory(model: Any) -> None:
    """Parameters of zeros, norms of ones, and rotary frequencies made anew."""
    memory: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in memory:
                bits = np.zeros(parameter.shape, np.uint16)  # by calloc: pages that do not exist
                value = torch.from_numpy(bits).view(torch.bfloat16)
                value = value.fill_(1) if parameter.ndim == 1 else value
                memory[id(parameter)] = nn.Parameter(value, requires_grad=False)
            module._parameters[name] = memory[id(parameter)]
    inner = model.model
    inner.rotary_emb = type(inner.rotary_emb)(config=model.config)


def _fill(runner: NativeRunner, deviation: float, generator: torch.Generator) -> None:
    """Random values for the weights that the fused step reads, and the modules' views of them."""
    step = runner._fused
    assert step is not None
    weights = [step.pattern.embedding.packed, step.pattern.head.packed]
    for layer in step._layers:
        weights += [one.weight for one in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    for weight in {id(weight.tensor): weight for weight in weights}.values():
        weight.tensor.normal_(0, deviation, generator=generator)
