"""Profile ``portable``: the CPU kernels behind ``detinfer.ops``, which documents the functions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detinfer.backends import portable_cache
from detinfer.backends.portable_cache import BatchTensors, KVCache
from detinfer.errors import UnsupportedModelError
from detinfer.kernels.cpu import activation as _activation
from detinfer.kernels.cpu import attend_all as _attend_all
from detinfer.kernels.cpu import attention as _attention
from detinfer.kernels.cpu import logits as _logits
from detinfer.kernels.cpu import matmul as _matmul
from detinfer.kernels.cpu import norms as _norms
from detinfer.kernels.cpu.jit import numba
from detinfer.kernels.cpu.packed import linear as _packed

page_bytes = portable_cache.page_bytes

Array = npt.NDArray[np.float32]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RMS_VARIANTS = {
    "scale_rounded": _norms.SCALE_ROUNDED,
    "round_scaled": _norms.ROUND_SCALED,
    "one_plus": _norms.ONE_PLUS,
}


class PackedWeight:
    """A linear or embedding weight [n, k] in the kernels' panel layout, read-only.

    Attributes:
        n: output features (rows of the table, for an embedding).
        k: input features.
        storage: ``bfloat16`` or ``float32``; never changes a result's bits.
    """

    def __init__(self, panels: Tensor, n: int) -> None:
        self.panels, self.n, self.k = panels, n, panels.shape[1]
        self.is_bf16 = panels.dtype == torch.bfloat16
        self.storage = "bfloat16" if self.is_bf16 else "float32"
        self.address, self.panel_bytes = panels.data_ptr(), panels[0].nbytes
        self.tile = self.row = int(self.is_bf16)

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as it was packed. [n, k]"""
        panels = _unpaired(self.panels) if self.is_bf16 else self.panels
        whole = panels.transpose(1, 2).reshape(-1, self.k)
        return whole[: self.n].to(dtype).contiguous()

    def linear(self, rows: Array, bias: Array | None, out: Array) -> None:
        """``out = rows @ weight.T + bias``. rows [M, k], bias [n], out [M, n]"""
        _matmul.linear(rows, self.address, self.is_bf16, self.n, _address(bias), _matmul.ZEROS, out)

    def rows(self, ids: npt.NDArray[np.int64], out: Array) -> None:
        """``out[t] = weight[ids[t]]``. ids [T], out [T, k]"""
        _matmul.embedding(ids, self.k, self.address, self.is_bf16, out)


class BlockWeight(_packed.PackedBlocks):
    """A weight [n, k] that stays in its quantised blocks: a ``PackedWeight`` of rule 1q."""

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the numbers that the blocks stand for. [n, k]"""
        values = np.empty((self.n, self.k), np.float32)
        self.rows(np.arange(self.n), values)
        return torch.from_numpy(values).to(dtype)


Weight = PackedWeight | BlockWeight


def pack(weight: Tensor, dtype: torch.dtype, device: torch.device) -> PackedWeight:
    """Pack a weight [n, k]; 16-bit storage wherever every value is exactly a bfloat16."""
    n, k = weight.shape
    storage = torch.bfloat16 if _fits_bf16(weight) else torch.float32
    panels = -(-n // _matmul.PANEL)
    packed = torch.empty(panels, k, _matmul.PANEL, dtype=storage)
    columns = torch.empty(k, _matmul.PANEL, dtype=storage)
    for panel in range(panels):
        rows = weight[panel * _matmul.PANEL : (panel + 1) * _matmul.PANEL]
        columns[:, : rows.shape[0]] = rows.T
        columns[:, rows.shape[0] :] = 0
        packed[panel] = _paired(columns) if storage == torch.bfloat16 else columns
    return PackedWeight(packed, n)


def _paired(columns: Tensor) -> Tensor:
    """Return the columns of bf16 panels in the order in which they are kept. [..., 64]"""
    return columns.reshape(*columns.shape[:-1], 2, 2, 16).transpose(-1, -2).reshape(columns.shape)


def _unpaired(kept: Tensor) -> Tensor:
    """Undo ``_paired``."""
    return kept.reshape(*kept.shape[:-1], 2, 16, 2).transpose(-1, -2).reshape(kept.shape)


def pack_blocks(blocks: Tensor, kind: str, n: int, k: int) -> BlockWeight:
    """Pack rows of quantised blocks, which stay as they are but for their order."""
    made = _packed.pack(blocks.numpy().reshape(n, -1), kind, n, k)
    return BlockWeight(made.panels, made.storage, n, k)


def _fits_bf16(weight: Tensor) -> bool:
    if weight.dtype == torch.bfloat16:
        return True
    step = max(1, (1 << 22) // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], step):
        rows = weight[start : start + step].detach().to(torch.float32).contiguous()
        bits = rows.numpy().view(np.uint32)
        if (bits & 0xFFFF).any():
            return False
    return True


def linear(x: Tensor, weight: Weight, bias: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
    if x.shape[-1] != weight.k:
        raise ValueError(f"x: got {x.shape[-1]} features, expected {weight.k}")
    if bias is not None and tuple(bias.shape) != (weight.n,):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected ({weight.n},)")
    rows = _rows(x)
    out = np.empty((rows.shape[0], weight.n), np.float32)
    added = None if bias is None else _vector(bias)
    weight.linear(rows, added, out)
    return torch.from_numpy(out).reshape(*x.shape[:-1], weight.n).to(out_dtype or x.dtype)


def embedding(ids: Tensor, weight: Weight, dtype: torch.dtype) -> Tensor:
    flat = np.ascontiguousarray(ids.numpy().reshape(-1), dtype=np.int64)
    if flat.size and (flat.min() < 0 or flat.max() >= weight.n):
        raise ValueError(f"ids: got {flat.min()}..{flat.max()}, expected 0..{weight.n - 1}")
    out = np.empty((flat.size, weight.k), np.float32)
    weight.rows(flat, out)
    return torch.from_numpy(out).reshape(*ids.shape, weight.k).to(dtype)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, variant: str) -> Tensor:
    code = RMS_VARIANTS[variant]
    rows = _rows(x)
    if code == _norms.SCALE_ROUNDED and x.dtype != torch.float32 and weight is not None:
        plain = rms_norm(x, None, eps, variant)
        return plain * weight.to(x.dtype)
    out = np.empty_like(rows)
    scale = None if weight is None else _vector(weight)
    code = _norms.UNSCALED if weight is None else code
    _norms.rms_norm(rows, _address(scale), np.float32(eps), code, out)
    return _restore(out, x)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    rows = _rows(x)
    out = np.empty_like(rows)
    scale, added = (None if t is None else _vector(t) for t in (weight, bias))
    _norms.layer_norm(rows, _address(scale), _address(added), np.float32(eps), out)
    return _restore(out, x)


def activation(name: str, x: Tensor) -> Tensor:
    rows = _rows(x)
    out = np.empty_like(rows)
    _activation.activation(_activation.NAMES.index(name), rows.reshape(-1), out.reshape(-1))
    return _restore(out, x)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return _gate(False, gate, up)


def gelu_tanh_mul(gate: Tensor, up: Tensor) -> Tensor:
    return _gate(True, gate, up)


def _gate(gelu: bool, gate: Tensor, up: Tensor) -> Tensor:
    if gate.shape != up.shape:
        raise ValueError(f"up: got shape {tuple(up.shape)}, expected {tuple(gate.shape)}")
    if gate.dtype != torch.float32:
        return activation("gelu_tanh" if gelu else "silu", gate) * up
    gates, ups = _rows(gate), _rows(up)
    out = np.empty_like(gates)
    _activation.gate(gelu, gates.reshape(-1), ups.reshape(-1), out.reshape(-1))
    return _restore(out, gate)


def softmax(x: Tensor) -> Tensor:
    rows = _rows(x)
    out = np.empty_like(rows)
    _logits.softmax(rows, out)
    return torch.from_numpy(out).reshape(x.shape)


def log_softmax(x: Tensor) -> Tensor:
    rows = _rows(x)
    out = np.empty_like(rows)
    _logits.log_softmax(rows, out)
    return torch.from_numpy(out).reshape(x.shape)


def summarise(logits: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    rows = _rows(logits)
    best, sums = np.empty(len(rows), np.int64), np.empty((len(rows), 2), np.uint64)
    _logits.summarise(rows, best, sums)
    return best, sums


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: KVCache,
    layer: int,
    batch: BatchTensors,
    *,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    spec = cache.specs[layer]
    tokens, heads, _ = q.shape
    for name, tensor, shape in (
        ("q", q, (tokens, heads, spec.k_dim)),
        ("k", k, (tokens, spec.kv_heads, spec.k_dim)),
        ("v", v, (tokens, spec.kv_heads, spec.v_dim)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape}")
    if heads % spec.kv_heads:
        raise ValueError(f"q: got {heads} heads, expected a multiple of {spec.kv_heads}")
    out = np.empty((tokens, heads, spec.v_dim), np.float32)
    sink = None if sinks is None else _vector(sinks)
    _attention.attention(
        numba.get_num_threads(),
        *(_float(t) for t in (q, k, v)),
        batch.query_start,
        batch.positions,
        batch.block_tables,
        *batch.work(spec.kv_heads, heads // spec.kv_heads, spec.v_dim),
        cache.keys[layer].ctypes.data,
        cache.values[layer].ctypes.data,
        cache.size,
        spec.kv_heads,
        np.float32(scale),
        window,
        np.float32(softcap),
        _address(sink),
        _matmul.ZEROS,
        out,
    )
    return torch.from_numpy(out).to(q.dtype)


def attend_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != q.shape:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(q.shape)}")
    rows = [_float(t).reshape(-1, *q.shape[-2:]) for t in (q, k, v)]
    out = np.empty_like(rows[0])
    _attend_all.attend_all(*rows, np.float32(scale), _matmul.ZEROS, out)
    return _restore(out, q)


def _float(x: Tensor) -> Array:
    if x.dtype not in DTYPES:
        raise ValueError(f"x: got {x.dtype}, expected float32, bfloat16 or float16")
    if x.device.type != "cpu":
        raise UnsupportedModelError(f"device {x.device}: only CPU kernels exist")
    floats: Array = x.detach().to(torch.float32).contiguous().numpy()
    return floats


def _rows(x: Tensor) -> Array:
    """``x`` as binary32 rows. [rows, last dimension]"""
    return _float(x).reshape(-1, x.shape[-1])


def _vector(x: Tensor) -> Array:
    return _float(x).reshape(-1)


def _address(array: Array | None) -> int:
    """Return an address a kernel reads during its call; the caller keeps the array alive."""
    return 0 if array is None else array.ctypes.data


def _restore(out: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(out).reshape(like.shape).to(like.dtype)
