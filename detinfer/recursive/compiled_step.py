"""A supervision step as one compiled call on the CPU: a table of addresses over packed weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detinfer import ops
from detinfer.kernels.cpu import recursive as kernel
from detinfer.kernels.cpu.matmul import ZEROS
from detinfer.kernels.cpu.microkernel import TILE_ROWS
from detinfer.kernels.cpu.norms import UNSCALED
from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.network import EPS, rope_table

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]


def misfit(config: RecursiveConfig) -> str | None:
    """Say why a shape has no compiled step, or nothing."""
    if config.mixer == "mlp":
        return "mixer 'mlp' has none yet"
    if config.mixer == "units" and config.prefix:
        return "units with a prefix have none"
    if config.hidden > kernel.MOST_HIDDEN:
        return f"hidden: got {config.hidden}, at most {kernel.MOST_HIDDEN} have one"
    return None


class CompiledStep:
    """The whole step of a model as one call.

    Args:
        config: a shape for which ``misfit`` has nothing to say.
        weights: by name.
        units: cells of each unit, by kind, for a mixer of that name. [kinds, n, size]
    """

    def __init__(
        self,
        config: RecursiveConfig,
        weights: Mapping[str, Tensor],
        units: npt.NDArray[np.int64] | None,
    ) -> None:
        self._keep: list[Any] = []  # what the tables' addresses point into
        layers = [self._layer(weights, f"L_level.layers.{i}.") for i in range(config.layers)]
        ends = ("embed_tokens.embedding_weight", "lm_head.weight", "q_head.weight")
        dims = {
            "prefix": config.prefix,
            "heads": config.heads,
            "inner": config.intermediate,
            "cycles": config.cycles,
            "updates": config.updates,
            "vocab": config.vocab,
            "verdicts": config.verdicts,
            "norm_variant": UNSCALED,
        }
        factors = {
            "scale": 1 / math.sqrt(config.hidden // config.heads),
            "eps": EPS,
            "embedding": math.sqrt(config.hidden),
            "bias": weights["q_head.bias"][0].item(),
        }
        tokens = config.prefix + config.cells
        puzzle = weights["puzzle_emb.weights"][0] if config.prefix else torch.zeros(config.hidden)
        self._tables = (
            np.array(layers, np.int64),
            np.array([self._packed(weights[name]) for name in ends], np.int64),
            np.array([dims[name] for name in kernel.DIMS], np.int64),
            np.array([factors[name] for name in kernel.FACTORS], np.float32),
            puzzle.detach().float().contiguous().numpy(),
            np.arange(tokens).reshape(1, 1, -1) if units is None else np.ascontiguousarray(units),
            *self._rotary(config),
            ZEROS,
        )

    def __call__(self, threads: int, boards: I8, y: F32, z: F32) -> tuple[I8, F32]:
        """Step every puzzle, its states in place.

        Returns:
            grids, with -1 where logits are not finite [B, cells], and q [B].
        """
        grids, q = np.empty_like(boards), np.empty(len(boards), np.float32)
        # Of a puzzle that is shared a thread takes some rows at least.
        busy = min(threads, max(len(boards), -(-y.shape[1] // TILE_ROWS)))
        kernel.step(busy, boards, y, z, *self._tables, grids, q)
        return grids, q

    def _layer(self, weights: Mapping[str, Tensor], name: str) -> list[tuple[int, int]]:
        gate, up = weights[name + "mlp.gate_up_proj.weight"].chunk(2)
        attention, down = name + "self_attn.", weights[name + "mlp.down_proj.weight"]
        tensors = {
            "qkv": weights[attention + "qkv_proj.weight"],
            "out": weights[attention + "o_proj.weight"],
            "gate": gate,
            "up": up,
            "down": down,
        }
        return [self._packed(tensors[part]) for part in kernel.LAYER]

    def _packed(self, weight: Tensor) -> tuple[int, int]:
        packed = ops.pack(weight)
        self._keep.append(packed)
        return packed.address, packed.tile

    def _rotary(self, config: RecursiveConfig) -> tuple[int, int]:
        if config.mixer != "attention":
            return 0, 0
        table = rope_table(config)
        self._keep.append(table)
        return table.cos.data_ptr(), table.sin.data_ptr()
