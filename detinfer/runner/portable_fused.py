"""The Llama pattern as one compiled call on the CPU: a table of addresses over packed weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from detinfer import ops
from detinfer.batch import Batch
from detinfer.kernels.cpu import fused as kernel
from detinfer.kernels.cpu.jit import numba
from detinfer.kernels.cpu.matmul import PANEL, ZEROS
from detinfer.models.attention import AttentionCall
from detinfer.runner.llama_pattern import LayerPattern, LinearPart, match, require

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


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
        self.heads, self.kv_heads, self.vocab = heads, spec.kv_heads, int(head.n)
        self.dims = np.array(
            [embedding.k, heads, spec.kv_heads, spec.k_dim, pattern.rotary, pattern.inner, head.n,
             ops.RMS_VARIANTS[pattern.variant], pattern.wide, pattern.gelu,
             embedding.address, embedding.is_bf16, self._floats(pattern.final_norm.weight),
             head.address, head.is_bf16],
            np.int64,
        )  # fmt: skip
        self._keep += [embedding, head]
        self.factors = np.array(
            [pattern.eps, pattern.scale, pattern.softcap, pattern.embedding_factor,
             pattern.residual, *pattern.logit_factors],
            np.float32,
        )  # fmt: skip
        self._widths = (embedding.k, embedding.k, heads * spec.k_dim, spec.kv_heads * spec.k_dim,
                        spec.kv_heads * spec.k_dim, heads * spec.k_dim, pattern.inner)  # fmt: skip
        self._scratch: list[Float32Array] = []

    def forward(
        self,
        ids: npt.NDArray[np.int32],
        batch: ops.BatchTensors,
        logit_rows: npt.NDArray[np.int32],
        out: Float32Array,
    ) -> None:
        """Run one step.

        Args:
            ids: token ids. [T]
            logit_rows: rows whose logits are wanted. [L]
            out: receives the logits. [L, vocab]
        """
        tokens = ids.size
        if not self._scratch or self._scratch[0].shape[0] < tokens:
            self._scratch = [np.empty((tokens, width), np.float32) for width in self._widths]
        kernel.step(
            numba.get_num_threads(),
            ids, batch.positions, batch.sequences, batch.block_tables,
            batch.work(self.kv_heads, self.heads // self.kv_heads), logit_rows,
            self.layers, self.dims, self.factors, *self._scratch, ZEROS, out,
        )  # fmt: skip

    def _row(self, layer: LayerPattern, cache: ops.KVCache) -> list[int]:
        """Return the table's row of one decoder layer."""
        row: list[int] = []
        for linear in layer.linears:
            row += [self._address(linear), linear.leaf.packed.is_bf16, self._floats(linear.bias)]
        for slot in kernel.NORMS:
            module = layer.norms.get(slot)
            row.append(0 if module is None else self._floats(module.weight))
        call, table = layer.call, layer.rope
        row.append(call.window)
        row += [0, 0] if table is None else [self._floats(table.cos), self._floats(table.sin)]
        row += [cache.keys[call.layer].ctypes.data, cache.values[call.layer].ctypes.data]
        return row

    def _address(self, linear: LinearPart) -> int:
        weight = linear.leaf.packed
        require(linear.start % PANEL == 0, f"a joined weight is cut at row {linear.start}")
        self._keep.append(weight)
        item = 2 if weight.is_bf16 else 4
        address: int = weight.address + linear.start * weight.k * item
        return address

    def _floats(self, values: torch.Tensor | Float32Array | None) -> int:
        """Address of a binary32 copy that lives as long as the step; 0 for None."""
        if values is None:
            return 0
        if isinstance(values, torch.Tensor):
            values = values.detach().to(torch.float32).contiguous().numpy()
        self._keep.append(values)
        return values.ctypes.data


def plans_agree(modules: Callable[[Batch], torch.Tensor], fused: FusedStep) -> bool:
    """Tell whether both plans give the same bits of logits on a prompt and a chunk after it.

    Args:
        modules: logits of a batch by the model's own modules, on page 1 of the pool.
    """
    ids = (np.arange(24, dtype=np.int32) * 7919 + 1) % fused.vocab
    for start, stop in ((0, 20), (20, 24)):
        batch = Batch(
            input_ids=ids[start:stop],
            positions=np.arange(start, stop, dtype=np.int32),
            query_start=np.array([0, stop - start], np.int32),
            block_tables=np.ones((1, 1), np.int32),
            logit_rows=np.arange(stop - start, dtype=np.int32),
        )
        tensors = ops.BatchTensors(batch.positions, batch.query_start, batch.block_tables)
        expected = modules(batch).numpy()
        got = np.empty_like(expected)
        fused.forward(batch.input_ids, tensors, batch.logit_rows, got)
        if not np.array_equal(got.view(np.int32), expected.view(np.int32)):
            return False
    return True
