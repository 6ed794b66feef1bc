"""The Llama pattern as a sequence of Triton launches: about ten a layer, no host work between.

Rounds where the model's own modules round, so that both plans give equal bits. A fast step runs the
same launches with PyTorch's matrix products, and its flash attention on whole prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detinfer.backends.native import NativeCache, NativeWeight
from detinfer.backends.native_batch import NativeBatch
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.triton import activation, attention, embedding, matmul, norms, rope
from detinfer.runner.llama_pattern import LayerPattern, LinearPart, Pattern, require


@dataclass(frozen=True)
class _Linear:
    weight: NativeWeight
    bias: Tensor | None


@dataclass(frozen=True)
class _Layer:
    qkv: _Linear
    o: _Linear
    gate_up: _Linear
    down: _Linear
    norms: dict[str, Tensor]
    cos: Tensor | None
    sin: Tensor | None
    keys: Tensor
    values: Tensor
    window: int


class NativeStep:
    """The whole forward of a Llama-like model.

    Joins q, k and v, and gate and up, into one weight each; the model's own modules then read rows
    of the joined weights, so nothing is held twice.

    Args:
        pattern: of a model patched on the device.
        cache: the page pool.

    Raises:
        PatternMismatch: naming what does not fit.
    """

    def __init__(self, pattern: Pattern, cache: NativeCache) -> None:
        self.pattern = pattern
        self._layers = [self._layer(layer, cache) for layer in pattern.layers]
        self._final = pattern.final_norm.weight
        self._gate = activation.gelu_tanh_mul if pattern.gelu else activation.silu_mul

    def forward(self, batch: NativeBatch, deterministic: bool = True) -> Tensor:
        """Logits of the batch's logit rows. [L, vocab] float32."""
        pattern = self.pattern
        hidden = embedding.embedding(batch.input_ids, pattern.embedding.packed.tensor)
        if pattern.embedding_factor != 1:
            hidden = hidden * pattern.embedding_factor
        added: Tensor | None = None  # what the residual stream has yet to take
        for layer in self._layers:
            x = self._norm(layer.norms.get("input"), hidden, added)
            added = self._attention(x, layer, batch, deterministic)
            if "post_attention" in layer.norms:
                added = self._norm(layer.norms["post_attention"], added)
            x = self._norm(layer.norms.get("pre_mlp"), hidden, self._scaled(added))
            joined = _product(x, layer.gate_up, deterministic)
            inner = self._gate(joined[:, : pattern.inner], joined[:, pattern.inner :])
            added = _product(inner, layer.down, deterministic)
            if "post_mlp" in layer.norms:
                added = self._norm(layer.norms["post_mlp"], added)
            added = self._scaled(added)
        rows = batch.logit_rows
        hidden = hidden.index_select(0, rows)
        x = self._norm(self._final, hidden, None if added is None else added.index_select(0, rows))
        head = _Linear(pattern.head.packed, None)
        return self._finish(_product(x, head, deterministic, torch.float32))

    def _norm(self, weight: Tensor | None, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Norm x, which becomes ``x + added`` first; return x itself where there is no norm."""
        if weight is None:
            return x if added is None else x.add_(added)
        if added is None:
            return norms.rms_norm(x, weight, self.pattern.eps, self.pattern.variant)
        return norms.rms_norm(added, weight, self.pattern.eps, self.pattern.variant, residual=x)

    def _scaled(self, added: Tensor) -> Tensor:
        return added if self.pattern.residual == 1 else added * self.pattern.residual

    def _attention(
        self, x: Tensor, layer: _Layer, batch: NativeBatch, deterministic: bool
    ) -> Tensor:
        pattern = self.pattern
        spec, heads = pattern.spec, pattern.heads
        qkv = _product(x, layer.qkv, deterministic)
        q_norm, k_norm = layer.norms.get("q"), layer.norms.get("k")
        if pattern.wide and q_norm is not None and k_norm is not None:
            q_width, kv_width = heads * spec.k_dim, spec.kv_heads * spec.k_dim
            for start, width, weight in ((0, q_width, q_norm), (q_width, kv_width, k_norm)):
                part = qkv[:, start : start + width]
                part.copy_(norms.rms_norm(part, weight, pattern.eps, pattern.variant))
            q_norm = k_norm = None
        q = rope.rotate_and_cache(
            qkv,
            batch.positions,
            batch.slots,
            layer.cos,
            layer.sin,
            layer.keys,
            layer.values,
            heads=heads,
            kv_heads=spec.kv_heads,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=pattern.eps,
            variant=pattern.variant,
            wide_angles=pattern.wide_angles,
        )
        if not deterministic and batch.longest and not layer.window and not pattern.softcap:
            out = _flash(q, layer, batch, pattern.scale)
            return _product(out.view(len(out), -1), layer.o, deterministic)
        group = heads // spec.kv_heads
        out = attention.attention(
            q,
            layer.keys,
            layer.values,
            batch.block_tables,
            batch.work(group, layer.window, spec.k_dim, spec.v_dim),
            scale=pattern.scale,
            window=layer.window,
            softcap=pattern.softcap,
        )
        return _product(out.view(len(out), -1), layer.o, deterministic)

    def _finish(self, logits: Tensor) -> Tensor:
        divisor, factor, softcap = self.pattern.logit_factors
        if divisor != 1:
            logits = logits / divisor
        if factor != 1:
            logits = logits * factor
        if softcap:
            logits = activation.activation("tanh", logits / softcap) * softcap
        return logits

    def _layer(self, layer: LayerPattern, cache: NativeCache) -> _Layer:
        q, k, v, o, gate, up, down = layer.linears
        call, table = layer.call, layer.rope
        return _Layer(
            qkv=_joined(q, k, v),
            o=_joined(o),
            gate_up=_joined(gate, up),
            down=_joined(down),
            norms={slot: norm.weight for slot, norm in layer.norms.items()},
            cos=None if table is None else table.cos,
            sin=None if table is None else table.sin,
            keys=cache.keys[call.layer],
            values=cache.values[call.layer],
            window=call.window,
        )


def _product(
    x: Tensor, linear: _Linear, deterministic: bool, out_dtype: torch.dtype | None = None
) -> Tensor:
    if deterministic:
        return matmul.linear(x, linear.weight, linear.bias, out_dtype=out_dtype)
    y = F.linear(x, linear.weight.tensor, linear.bias)
    return y if out_dtype is None else y.to(out_dtype)


def _flash(q: Tensor, layer: _Layer, batch: NativeBatch, scale: float) -> Tensor:
    """PyTorch's flash attention over whole prompts; it cannot read pages, so they are gathered."""
    slots = batch.slots.long()
    pages, offsets = slots // PAGE_SIZE, slots % PAGE_SIZE
    k, v = layer.keys[pages, :, offsets], layer.values[pages, :, offsets]
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, batch.starts, batch.starts, batch.longest, batch.longest, 0.0, True, False,
        scale=scale,
    )[0]  # fmt: skip
    return out


def _joined(*parts: LinearPart) -> _Linear:
    """One linear layer of several: their weights, row under row, in one tensor."""
    first = parts[0].leaf
    if len(parts) == 1 or all(part.leaf is first for part in parts):
        require(sum(part.n for part in parts) == first.packed.n, "a joined weight with more rows")
        weight = first.packed
    else:
        require(all(part.start == 0 for part in parts), "joined weights joined again")
        weight = NativeWeight(torch.cat([part.leaf.packed.tensor for part in parts]))
        start = 0
        for part in parts:  # the modules read the joined memory from now on
            part.leaf.packed = weight.rows(start, part.n)
            start += part.n
    biases = [part.bias for part in parts]
    if all(bias is None for bias in biases):
        return _Linear(weight, None)
    zeros = (weight.tensor.new_zeros(part.n) for part in parts)
    given = [z if b is None else b for z, b in zip(zeros, biases, strict=True)]
    return _Linear(weight, torch.cat(given))
