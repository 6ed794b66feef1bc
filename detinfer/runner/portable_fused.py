"""The Llama pattern as one compiled call on the CPU: a table of addresses over packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from detinfer import ops
from detinfer.batch import IntArray
from detinfer.kernels.cpu.fused import step as kernel
from detinfer.kernels.cpu.fused import table
from detinfer.kernels.cpu.jit import numba
from detinfer.kernels.cpu.matmul import PANEL, ZEROS
from detinfer.kernels.cpu.packed.rows import quantised_bytes
from detinfer.models.attention import AttentionCall
from detinfer.runner.llama_pattern import LayerPattern, LinearPart, match, require

Float32Array = npt.NDArray[np.float32]
_NO_ROWS: IntArray = np.empty(0, np.int32)


class FusedStep:
    """The whole forward of a Llama-like model as one call.

    Args:
        model: a patched causal language model.
        calls: the attention calls recorded at load, one a layer.
        cache: the page pool.

    Raises:
        PatternMismatch: naming the module that does not fit.
    """

    def __init__(self, model: Any, calls: Sequence[AttentionCall], cache: ops.KVCache) -> None:
        self._keep: list[Any] = [cache]  # what the table's addresses point into
        pattern = match(model, calls)
        spec, heads = pattern.spec, pattern.heads
        embedding, head = pattern.embedding.packed, pattern.head.packed
        self.layers = np.array([self._row(layer, cache) for layer in pattern.layers], np.int64)
        self.heads, self.kv_heads, self.head_dim = heads, spec.kv_heads, spec.k_dim
        dims = {
            "hidden": embedding.k,
            "heads": heads,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.k_dim,
            "rotary": pattern.rotary,
            "inner": pattern.inner,
            "vocab": head.n,
            "norm_variant": ops.RMS_VARIANTS[pattern.variant],
            "wide_qk_norm": pattern.wide,
            "gelu": pattern.gelu,
            "embedding": embedding.address,
            "embedding_row": embedding.row,
            "embedding_panel": embedding.panel_bytes,
            "final_norm": self._floats(pattern.final_norm.weight),
            "head": head.address,
            "head_tile": head.tile,
            "head_panel": head.panel_bytes,
            "cache_size": cache.size,
        }
        self.dims = np.array([dims[name] for name in table.DIMS], np.int64)
        self._keep += [embedding, head]
        divisor, factor, softcap = pattern.logit_factors
        factors = {
            "eps": pattern.eps,
            "scale": pattern.scale,
            "attention_softcap": pattern.softcap,
            "embedding": pattern.embedding_factor,
            "residual": pattern.residual,
            "logits_divisor": divisor,
            "logits_factor": factor,
            "final_softcap": softcap,
        }
        self.factors = np.array([factors[name] for name in table.FACTORS], np.float32)
        self._widths = (embedding.k, embedding.k, heads * spec.k_dim, spec.kv_heads * spec.k_dim,
                        spec.kv_heads * spec.k_dim, heads * spec.k_dim, pattern.inner)  # fmt: skip
        self._scratch: list[npt.NDArray[Any]] = []

    def forward(
        self,
        ids: IntArray,
        batch: ops.BatchTensors,
        logit_rows: IntArray,
        out: Float32Array,
        hidden_rows: IntArray = _NO_ROWS,
    ) -> Float32Array:
        """Run one step.

        Args:
            ids: token ids. [T]
            logit_rows: rows whose logits are wanted. [L]
            out: receives the logits. [L, vocab]
            hidden_rows: other rows, whose final hidden states are wanted. [H]

        Returns:
            Those states, valid until the next call. [H, hidden]
        """
        tokens = ids.size
        if not self._scratch or self._scratch[0].shape[0] < tokens:
            self._scratch = [np.empty((tokens, width), np.float32) for width in self._widths]
            hidden, *_, attended, inner = self._widths
            for width in (max(hidden, attended), inner):
                self._scratch.append(np.empty((tokens, quantised_bytes(width)), np.uint8))
        rows, count = logit_rows, len(logit_rows)
        if len(hidden_rows):
            rows = np.concatenate([logit_rows, hidden_rows])
        kernel.step(
            numba.get_num_threads(),
            ids, batch.positions, batch.sequences, batch.block_tables,
            *batch.work(self.kv_heads, self.heads // self.kv_heads, self.head_dim), rows,
            self.layers, self.dims, self.factors, *self._scratch, ZEROS, out,
        )  # fmt: skip
        normed: Float32Array = self._scratch[1]
        return normed[count : len(rows)]

    def _row(self, layer: LayerPattern, cache: ops.KVCache) -> list[int]:
        """Return the table's row of one decoder layer."""
        row: dict[str, int] = {}
        for name, linear in zip(table.LINEARS, layer.linears, strict=True):
            row[f"{name}.address"] = self._address(linear)
            row[f"{name}.tile"] = linear.leaf.packed.tile
            row[f"{name}.panel"] = linear.leaf.packed.panel_bytes
            row[f"{name}.bias"] = self._floats(linear.bias)
        for slot in table.NORMS:
            norm = layer.norms.get(slot)
            row[f"{slot}_norm"] = 0 if norm is None else self._floats(norm.weight)
        call, rope = layer.call, layer.rope
        row["window"] = call.window
        row["cos"] = 0 if rope is None else self._floats(rope.cos)
        row["sin"] = 0 if rope is None else self._floats(rope.sin)
        row["k_cache"] = cache.keys[call.layer].ctypes.data
        row["v_cache"] = cache.values[call.layer].ctypes.data
        return [row[name] for name in table.COLUMNS]

    def _address(self, linear: LinearPart) -> int:
        weight = linear.leaf.packed
        require(linear.start % PANEL == 0, f"a joined weight is cut at row {linear.start}")
        self._keep.append(weight)
        address: int = weight.address + linear.start // PANEL * weight.panel_bytes
        return address

    def _floats(self, values: torch.Tensor | Float32Array | None) -> int:
        """Address of a binary32 copy that lives as long as the step; 0 for None."""
        if values is None:
            return 0
        if isinstance(values, torch.Tensor):
            values = values.detach().to(torch.float32).contiguous().numpy()
        self._keep.append(values)
        return values.ctypes.data
