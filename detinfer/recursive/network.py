"""The network of a tiny recursive model over any set of kernels.

A supervision step improves a latent state z and an answer y, ``config.cycles`` times: z is updated
``config.updates`` times from (z, y + x), then y from (y, z), by one and the same stack of post-norm
layers without norm weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from detinfer.models.rope_frequencies import RopeSpec, rope_frequencies
from detinfer.models.rope_table import RopeTable, build_rope_table
from detinfer.recursive.config import RecursiveConfig

EPS, ROPE_THETA = 1e-5, 10000.0


def rope_table(config: RecursiveConfig) -> RopeTable:
    """Cosines and sines of every token's position: rule 5 of the arithmetic contract."""
    tokens = config.prefix + config.cells
    spec = RopeSpec({"rope_theta": ROPE_THETA}, config.hidden // config.heads // 2, tokens, tokens)
    return build_rope_table(rope_frequencies(spec)[0], tokens)


class Kernels(Protocol):
    """What a network is computed with: PyTorch's kernels, or those of the contract."""

    def embedding(self, ids: Tensor, weight: Any) -> Tensor:
        """Look up rows of ``weight``. [...] -> [..., D]"""

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        """Multiply by the transposed weight. [..., K] -> [..., N]"""

    def rms_norm(self, x: Tensor) -> Tensor:
        """Norm over the last dimension, without a weight."""

    def mean_rows(self, x: Tensor) -> Tensor:
        """Average over rows. [B, rows, D] -> [B, D]"""

    def silu_mul(self, x: Tensor) -> Tensor:
        """Multiply silu of the last dimension's first half by its second."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from every row to every row, scaled by dim ** -0.5. [N, heads, rows, dim]"""


@dataclass(frozen=True)
class Network:
    """The forward of one latent recursion and of the heads.

    Attributes:
        config: its shape.
        weights: by name (``config.shapes``); what ``kernels`` take as weights.
        kernels: what it is computed with.
        units: cells of each unit, by kind (Task.units), for a mixer of that name. [kinds, n, size]
    """

    config: RecursiveConfig
    weights: Mapping[str, Any]
    kernels: Kernels
    units: Tensor | None = None

    def embed(self, boards: Tensor) -> Tensor:
        """Token ids to the input that every update is given. [B, cells] -> [B, tokens, D]"""
        config = self.config
        x = self.kernels.embedding(boards, self.weights["embed_tokens.embedding_weight"])
        if config.prefix:
            puzzle = self.weights["puzzle_emb.weights"][0]
            first = torch.nn.functional.pad(puzzle, (0, (config.prefix - 1) * config.hidden))
            x = torch.cat([first.view(1, config.prefix, -1).expand(len(x), -1, -1), x], 1)
        return x * math.sqrt(config.hidden)

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the first answer and latent state. [B, tokens, D]"""
        tokens = self.config.prefix + self.config.cells
        y, z = (self.weights[name].expand(batch, tokens, -1) for name in ("H_init", "L_init"))
        return y, z

    def recursion(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Update z from (z, y + x), several times, then y from (y, z)."""
        for _ in range(self.config.updates):
            z = self._layers(z + (y + x))
        return self._layers(y + z), z

    def heads(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of every cell [B, cells, vocab], and of the answer being right [B]."""
        weights, kernels = self.weights, self.kernels
        logits = kernels.linear(y[:, self.config.prefix :], weights["lm_head.weight"])
        read = y[:, 0] if self.config.prefix else kernels.mean_rows(y)
        verdicts = kernels.linear(read, weights["q_head.weight"], weights["q_head.bias"])
        return logits, verdicts[:, 0]

    def _layers(self, h: Tensor) -> Tensor:
        mix = {"attention": self._attention, "units": self._units}.get(self.config.mixer)
        norm = self.kernels.rms_norm
        for index in range(self.config.layers):
            name = f"L_level.layers.{index}."
            if mix is None:
                columns = h.transpose(1, 2)  # the norm is over cells here, not over the state
                columns = norm(columns + self._swiglu(columns, name + "mlp_t."))
                h = columns.transpose(1, 2)
            else:
                h = norm(h + mix(h, name + "self_attn."))
            h = norm(h + self._swiglu(h, name + "mlp."))
        return h

    def _swiglu(self, h: Tensor, name: str) -> Tensor:
        both = self.kernels.linear(h, self.weights[name + "gate_up_proj.weight"])
        return self.kernels.linear(
            self.kernels.silu_mul(both), self.weights[name + "down_proj.weight"]
        )

    def _queries_keys_values(self, h: Tensor, name: str) -> Tensor:
        """[B, tokens, 3, heads, dim]"""
        qkv = self.kernels.linear(h, self.weights[name + "qkv_proj.weight"])
        return qkv.view(*h.shape[:2], 3, self.config.heads, -1)

    def _attention(self, h: Tensor, name: str) -> Tensor:
        qkv = self._queries_keys_values(h, name)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = self.kernels.attention(self._rotate(q), self._rotate(k), v)
        return self.kernels.linear(
            mixed.transpose(1, 2).flatten(2), self.weights[name + "o_proj.weight"]
        )

    def _units(self, h: Tensor, name: str) -> Tensor:
        size, cells, back = self._order
        qkv, heads = self._queries_keys_values(h, name), self.config.heads // len(cells)
        mixed = []
        for kind in range(len(cells)):
            share = qkv[:, :, :, kind * heads : (kind + 1) * heads].index_select(1, cells[kind])
            groups = share.reshape(-1, size, 3, heads, share.shape[-1])
            q, k, v = groups.permute(2, 0, 3, 1, 4)
            out = self.kernels.attention(q, k, v).transpose(1, 2).reshape(*h.shape[:2], -1)
            mixed.append(out.index_select(1, back[kind]))
        return self.kernels.linear(torch.cat(mixed, -1), self.weights[name + "o_proj.weight"])

    @cached_property
    def _order(self) -> tuple[int, Tensor, Tensor]:
        """Size of a unit; cells unit by unit, and where each cell is then. [kinds, cells]"""
        assert self.units is not None
        cells = self.units.flatten(1).to(self._device)
        return self.units.shape[2], cells, cells.argsort(1)

    def _rotate(self, x: Tensor) -> Tensor:
        cos, sin = self._tables
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position, for both halves. [tokens, dim]"""
        table = rope_table(self.config)
        cos, sin = table.cos.to(self._device), table.sin.to(self._device)
        return torch.cat([cos, cos], 1), torch.cat([sin, sin], 1)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.weights["H_init"].device
        return device
