"""Rule 9 in plain NumPy, of the reference's other rules: a step of a tiny recursive model.

Written from docs/arithmetic.md, puzzle by puzzle, and from nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from detinfer.kernels import reference
from detinfer.kernels.reference import F32, Array

Weights = Mapping[str, Array]
EPS = 1e-5


def attend_all(q: Array, k: Array, v: Array, scale: float) -> Array:
    """Attention of every row to every row: rule 3 with nothing masked. [rows, heads, dim]"""
    last = np.full(len(q), len(k) - 1)
    return reference.attention(q, last, k, v, scale)


def mean(rows: Array) -> Array:
    """Average over rows. [rows, D] -> [D]"""
    total = reference.linear(np.ascontiguousarray(rows.T), np.ones((1, len(rows)), F32))
    return np.asarray(total[:, 0] / F32(len(rows)))


class Model:
    """A recursive model and one puzzle at a time.

    Args:
        weights: by name, as in a file of weights.
        mixer: ``attention``, ``units`` or ``mlp``.
        heads: of attention.
        prefix: tokens before the first cell.
        cycles, updates: T and n.
        units: cells of each unit, by kind. [kinds, n, size]
        tables: cosines and sines of every token's position. [tokens, dim / 2]
    """

    def __init__(
        self,
        weights: Weights,
        mixer: str,
        heads: int,
        prefix: int,
        cycles: int,
        updates: int,
        units: npt.NDArray[np.int64] | None = None,
        tables: tuple[Array, Array] | None = None,
    ) -> None:
        self.weights, self.mixer, self.heads, self.prefix = weights, mixer, heads, prefix
        self.cycles, self.updates, self.units, self.tables = cycles, updates, units, tables

    def step(
        self, board: npt.NDArray[np.int8], y: Array, z: Array
    ) -> tuple[Array, Array, Array, F32]:
        """One supervision step. board [cells], y and z [tokens, D] -> y, z, logits, q"""
        x = self._embed(board)
        for _ in range(self.cycles):
            for _ in range(self.updates):
                z = self._layers(z + (y + x))
            y = self._layers(y + z)
        logits = reference.linear(y[self.prefix :], self.weights["lm_head.weight"])
        read = y[0] if self.prefix else mean(y)
        head, bias = self.weights["q_head.weight"], self.weights["q_head.bias"]
        return y, z, logits, reference.linear(read[None], head, bias)[0, 0]

    def _embed(self, board: npt.NDArray[np.int8]) -> Array:
        table = self.weights["embed_tokens.embedding_weight"]
        x = table[board]
        if self.prefix:
            first = np.zeros((self.prefix, table.shape[1]), F32)
            first[0] = self.weights["puzzle_emb.weights"][0]
            x = np.concatenate([first, x])
        return np.asarray(x * F32(math.sqrt(table.shape[1])))

    def _layers(self, h: Array) -> Array:
        index = 0
        while (name := f"L_level.layers.{index}.") + "mlp.down_proj.weight" in self.weights:
            if self.mixer == "mlp":
                h = self._mixed(np.ascontiguousarray(h.T), name + "mlp_t.").T
            else:
                attended = self._attended(h, name + "self_attn.qkv_proj.weight")
                h = self._normed(
                    h + reference.linear(attended, self.weights[name + "self_attn.o_proj.weight"])
                )
            h = self._mixed(np.ascontiguousarray(h), name + "mlp.")
            index += 1
        return h

    def _mixed(self, h: Array, name: str) -> Array:
        both = reference.linear(h, self.weights[name + "gate_up_proj.weight"])
        gate, up = np.split(both, 2, axis=1)
        inner = reference.gated("silu", gate, up)
        return self._normed(h + reference.linear(inner, self.weights[name + "down_proj.weight"]))

    def _normed(self, h: Array) -> Array:
        return reference.rms_norm(h, None, EPS, "scale_rounded")

    def _attended(self, h: Array, name: str) -> Array:
        qkv = reference.linear(h, self.weights[name])
        q, k, v = qkv.reshape(len(h), 3, self.heads, -1).transpose(1, 0, 2, 3)
        scale = 1 / math.sqrt(q.shape[-1])
        if self.units is None:
            assert self.tables is not None
            cos, sin = (table[:, None] for table in self.tables)
            q, k = reference.rope(q, cos, sin), reference.rope(k, cos, sin)
            return attend_all(q, k, v, scale).reshape(h.shape)
        out, share = np.empty_like(q), self.heads // len(self.units)
        for kind, groups in enumerate(self.units):
            part = slice(kind * share, (kind + 1) * share)
            for cells in groups:
                out[cells, part] = attend_all(q[cells, part], k[cells, part], v[cells, part], scale)
        return out.reshape(h.shape)
