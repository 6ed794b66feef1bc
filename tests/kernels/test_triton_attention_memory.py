"""Triton's paged attention in the interpreter: what it reads, writes, refuses, is compiled for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from triton_world import (  # first: Triton is imported as the interpreter
    DEFAULT,
    NAN,
    SCALE,
    World,
    configs,
    sequence,
)

from detinfer.compile_audit.cases.attention import cases
from detinfer.kernels.triton import attention as module
from detinfer.kernels.triton.attention import (
    DeviceWorkList,
    attention,
    scratch_for,
)
from detinfer.kernels.triton.attention_work import (
    Layout,
    work_list,
)
from detinfer.kernels.triton.launch import ARCHITECTURES
from detinfer.testing import assert_same_bits, surrounded, to_torch


def test_writes_every_row_of_the_work_and_nothing_else():
    a, b = sequence(40, heads=(3, 1), dims=(16, 24)), sequence(520, heads=(3, 1), dims=(16, 24))
    world, parts = World([a, b]), [(a, 0, 40), (b, 518, 520)]
    out = surrounded(torch.full((42, 3, 24), NAN, dtype=torch.bfloat16))
    assert world.step(parts, out=out)[0].data_ptr() == out.data_ptr()
    assert not out.isnan().any()
    storage = torch.empty(0, dtype=out.dtype).set_(out.untyped_storage())
    assert storage.isnan().sum() == storage.numel() - out.numel()
    assert_same_bits(out, torch.cat(world.step(parts)))


def test_query_rows_may_lie_in_wider_rows():
    s = sequence(40, heads=(4, 2))
    world = World([s])
    (bits,) = world.step([(s, 0, 40)])
    wide = torch.full((40, 8, 16), NAN, dtype=torch.bfloat16)
    wide[:, 2:6] = to_torch(s.q, "bfloat16")
    starts, first = np.array([0, 40], np.int32), np.zeros(1, np.int32)
    work = work_list(starts, first, 2, DEFAULT.tiling(2))
    on_device = DeviceWorkList(torch.from_numpy(work.pack()), work.layout)
    tables = torch.tensor([s.pages], dtype=torch.int32)
    got = attention(wide[:, 2:6], world.k, world.v, tables, on_device, scale=SCALE, config=DEFAULT)
    assert_same_bits(got, bits)


def test_one_buffer_serves_any_load_it_has_room_for():
    """As a captured graph uses it: addresses, grid and scratch stay, the buffer is filled again."""
    sequences = [sequence(n, seed=n) for n in (30, 520, 1030)]
    world = World(sequences)
    tables = torch.zeros(3, 17, dtype=torch.int32)
    for row, s in zip(tables, sequences, strict=True):
        row[: len(s.pages)] = torch.tensor(s.pages)
    layout = Layout.for_load(DEFAULT.tiling(2), 2, 0, sequences=3, rows=1, length=1088)
    assert layout.prefill == 0
    buffer = np.full(layout.size, 7, np.int32)
    on_device = DeviceWorkList(torch.from_numpy(buffer), layout)
    scratch = scratch_for(layout, 2, 16, torch.device("cpu"))
    for lengths in ((30, 520, 1030), (1, 1), (29, 513, 2)):
        parts = [(s, n - 1, n) for s, n in zip(sequences, lengths, strict=False)]
        starts = np.arange(len(parts) + 1, dtype=np.int32)
        first = np.array(lengths, np.int32) - 1
        work_list(starts, first, 2, layout.tiling).pack_into(buffer, layout)
        q = to_torch(np.concatenate([s.q[a:b] for s, a, b in parts]), "bfloat16")
        got = attention(
            q, world.k, world.v, tables, on_device, scale=SCALE, config=DEFAULT, scratch=scratch
        )
        assert_same_bits(got, torch.cat(world.step(parts)))


def test_empty_batches():
    s = sequence(3)
    world = World([s])
    work = work_list(np.zeros(1, np.int32), np.zeros(0, np.int32), 2, DEFAULT.tiling(2))
    on_device = DeviceWorkList(torch.from_numpy(work.pack()), work.layout)
    q, tables = torch.zeros(0, 2, 16).bfloat16(), torch.zeros(0, 1, dtype=torch.int32)
    out = attention(q, world.k, world.v, tables, on_device, scale=SCALE, config=DEFAULT)
    assert out.shape == (0, 2, 16)


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("q", {"q": zeros(3, 2, 16, dtype=torch.float64)}),
        ("q", {"q": zeros(3, 32)}),
        ("q", {"q": zeros(3, 16, 2).mT}),
        (
            "q",
            {"q": zeros(3, 3, 16), "k_cache": zeros(2, 2, 64, 16), "v_cache": zeros(2, 2, 64, 16)},
        ),
        ("k_cache", {"k_cache": zeros(2, 64, 16)}),
        ("k_cache", {"k_cache": zeros(2, 1, 32, 16)}),
        ("k_cache", {"k_cache": zeros(2, 1, 64, 8)}),
        ("k_cache", {"k_cache": zeros(2, 1, 64, 16, dtype=torch.float16)}),
        ("k_cache", {"k_cache": zeros(2, 1, 16, 64).mT}),
        ("v_cache", {"v_cache": zeros(3, 1, 64, 16)}),
        ("v_cache", {"v_cache": zeros(2, 1, 64)}),
        ("block_tables", {"block_tables": zeros(1, 1, dtype=torch.int64)}),
        ("block_tables", {"block_tables": zeros(1, dtype=torch.int32)}),
        ("sinks", {"sinks": zeros(3)}),
        ("out", {"out": zeros(2, 2, 16)}),
        ("out", {"out": zeros(3, 2, 16, dtype=torch.float32)}),
        ("work", {"window": 5}),
        ("work", {"q": zeros(3, 1, 16)}),
        ("work", {"config": configs(prefill=128)}),
        ("window", {"window": -1}),
        ("softcap", {"softcap": -1.0}),
    ],
)
def test_bad_arguments_are_named(name, changed):
    work = work_list(np.array([0, 3], np.int32), np.zeros(1, np.int32), 2, DEFAULT.tiling(2))
    good = {
        "q": zeros(3, 2, 16),
        "k_cache": zeros(2, 1, 64, 16),
        "v_cache": zeros(2, 1, 64, 16),
        "block_tables": zeros(1, 1, dtype=torch.int32),
        "work": DeviceWorkList(torch.from_numpy(work.pack()), work.layout),
        "scale": 1.0,
        "config": DEFAULT,
    }
    attention(**good)
    with pytest.raises(ValueError, match=f"^{name}: got .*expected"):
        attention(**{**good, **changed})


def test_a_scratch_of_another_shape_is_named():
    s = sequence(520)
    scratch = scratch_for(Layout(DEFAULT.tiling(2), 2, 0, 0, 0, 0, 1), 2, 16, torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"^scratch: got shape \(1, 2, 16\), expected \(2, 2, 16\)"
    ):
        World([s]).step([(s, 519, 520)], scratch=scratch)


def test_cases_name_each_compilation_once():
    names = [(arch, case.name) for arch in ARCHITECTURES for case in cases(arch)]
    assert len(set(names)) == len(names) <= 110
    for case in cases(90):
        assert {*case.signature, *case.constants, "OVERLAP"} == set(case.kernel.arg_names)


def test_head_dimensions_without_a_kernel_are_named():
    with pytest.raises(ValueError, match=r"^k_dim, v_dim: got 512, 64, expected at most 256"):
        module.configs(90, torch.bfloat16, 512, 64)
    with pytest.raises(ValueError, match=r"^k_dim, v_dim: got 256, 256, expected at most 128"):
        module.configs(86, torch.float32, 256, 256)
