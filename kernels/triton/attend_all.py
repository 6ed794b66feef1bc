"""Attention of every row to every row of a board (docs/arithmetic.md, rules 9 and N3).

The queries of a tile stand for the heads of one query at the last position, which sees every key.
So the kernels are a language model's (attention.py), over pages that the rows are copied to.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.triton.arguments import check_shape
from detinfer.kernels.triton.attention import DeviceWorkList, attention
from detinfer.kernels.triton.attention_table import configs
from detinfer.kernels.triton.attention_work import work_list
from detinfer.kernels.triton.launch import architecture

QUERIES = 16  # of a tile: what the narrowest of every table takes


def attend_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attend within every board; a row's bits are its board's alone.

    Args:
        q, k, v: of one shape, float32, bfloat16 or float16. [..., rows, dim]
        scale: of the scores.

    Returns:
        [..., rows, dim] in q's dtype.

    Raises:
        ValueError: shapes that differ, or a dtype or dimension without a kernel.
    """
    check_shape("k", k, q.shape)
    check_shape("v", v, q.shape)
    rows, dim = q.shape[-2:]
    if not q.numel():
        return torch.empty_like(q)
    pages, tiles = -(-rows // PAGE_SIZE), -(-rows // QUERIES)
    keys, values = (
        _padded(x, pages * PAGE_SIZE).view(-1, 1, PAGE_SIZE, dim).contiguous() for x in (k, v)
    )
    queries = _padded(q, tiles * QUERIES).reshape(-1, QUERIES, dim)
    boards = len(queries) // tiles
    table = torch.arange(boards * pages, dtype=torch.int32, device=q.device).view(boards, pages)
    tiling = configs(architecture(q.device), q.dtype, dim, dim).tiling(QUERIES)
    one_each = np.arange(len(queries) + 1, dtype=np.int32)
    work = work_list(one_each, np.full(len(queries), rows - 1, np.int32), QUERIES, tiling)
    listed = DeviceWorkList(torch.from_numpy(work.pack()).to(q.device), work.layout)
    out = attention(queries, keys, values, table.repeat_interleave(tiles, 0), listed, scale=scale)
    return out.view(boards, -1, dim)[:, :rows].reshape(q.shape)


def _padded(x: Tensor, rows: int) -> Tensor:
    """Return boards with rows of zeros at their ends. [..., n, dim] -> [boards, rows, dim]"""
    return F.pad(x.reshape(-1, *x.shape[-2:]), (0, 0, 0, rows - x.shape[-2]))
