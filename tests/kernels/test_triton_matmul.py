"""The Triton linear in the interpreter: the native reference's bits from every configuration."""

from __future__ import annotations

import dataclasses
import inspect
import mmap

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from benchmarks.interpreter import install

install()

from detinfer.compile_audit.cases.matmul import cases  # noqa: E402
from detinfer.kernels import reference_native  # noqa: E402
from detinfer.kernels.triton import launch, matmul, matmul_table  # noqa: E402
from detinfer.kernels.triton.matmul import LinearConfig, Weight, linear  # noqa: E402
from detinfer.testing import (  # noqa: E402
    DTYPES,
    assert_rows_independent,
    assert_same_bits,
    rounded_normal,
    same_bits,
    surrounded,
    to_torch,
)

ALL_DTYPES = tuple(DTYPES)
SIXTEEN_BIT = ("bfloat16", "float16")
# (m, n, k): tails everywhere; rows that no descriptor takes (7, 1000); K below, at and past 128.
SHAPES = ((1, 40, 7), (3, 65, 48), (17, 130, 576), (70, 33, 1000), (5, 3, 128), (130, 65, 144))
GUARD = 3
TMA = LinearConfig(16, 16, 16, 4, 2, tma=True)


def operands(m, n, k, dtype, seed=0):
    """x [m, k], weight [n, k] and bias [n] as binary32 values that the dtype holds."""
    rng = np.random.default_rng(seed)
    return tuple(rounded_normal(rng, shape, dtype) for shape in ((m, k), (n, k), (n,)))


def every_config(dtype, n=4096, k=4096):
    """Every configuration any architecture's table has for the dtype, of every class of N."""
    found = {}
    for arch in launch.ARCHITECTURES:
        for columns in (1, n, 12288, 24576, 151936):
            found |= dict.fromkeys(matmul.configs(arch, DTYPES[dtype], columns, k))
    return tuple(found)


def guarded_out(m, n, dtype):
    """A NaN-filled [m, n] inside a NaN-filled buffer, and that buffer."""
    buffer = torch.full((m + 2 * GUARD, n + 2 * GUARD), float("nan"), dtype=DTYPES[dtype])
    return buffer[GUARD : GUARD + m, GUARD : GUARD + n], buffer


def label(config):
    return "-".join(str(int(value)) for value in dataclasses.astuple(config))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_linear_equals_the_reference_at_awkward_shapes(dtype, shape):
    x, w, bias = operands(*shape, dtype)
    expected = reference_native.linear(x, w, bias, dtype)
    weight = Weight(surrounded(to_torch(w, dtype)))
    got = linear(surrounded(to_torch(x, dtype)), weight, surrounded(to_torch(bias, dtype)))
    assert got.dtype == DTYPES[dtype]
    assert_same_bits(got.float(), expected)


@pytest.mark.parametrize("config", every_config("bfloat16"), ids=label)
def test_every_configuration_of_every_architecture_gives_the_reference_bits(config):
    x, w, bias = operands(19, 35, 176, "bfloat16")
    expected = reference_native.linear(x, w, bias, "bfloat16", "float32")
    got = linear(
        to_torch(x, "bfloat16"),
        Weight(to_torch(w, "bfloat16")),
        to_torch(bias, "bfloat16"),
        out_dtype=torch.float32,
        config=config,
    )
    assert_same_bits(got, expected)


@pytest.mark.parametrize("config", every_config("float32"), ids=label)
def test_every_float32_configuration_gives_the_reference_bits(config):
    x, w, _ = operands(67, 70, 130, "float32")
    got = linear(to_torch(x), Weight(to_torch(w)), config=config)
    assert_same_bits(got, reference_native.linear(x, w))


@pytest.mark.parametrize("persistent", [False, True])
def test_tiles_in_groups_cover_the_result_once(persistent):
    # 11 x 3 tiles: a full group of 8 row tiles, a shorter one, more tiles than programs.
    x, w, _ = operands(11 * 16 - 5, 40, 16, "bfloat16")
    config = LinearConfig(16, 16, 16, 4, 2, tma=True, persistent=persistent)
    out, buffer = guarded_out(len(x), len(w), "bfloat16")
    linear(to_torch(x, "bfloat16"), Weight(to_torch(w, "bfloat16")), out=out, config=config)
    assert_same_bits(out.float(), reference_native.linear(x, w, dtype="bfloat16"))
    out.fill_(float("nan"))
    assert buffer.isnan().all()


def test_large_tiles_in_groups_equal_the_reference():
    x, w, _ = operands(9 * 128 + 1, 20, 16, "bfloat16")
    config = LinearConfig(128, 16, 16, 4, 2)
    got = linear(to_torch(x, "bfloat16"), Weight(to_torch(w, "bfloat16")), config=config)
    assert_same_bits(got.float(), reference_native.linear(x, w, dtype="bfloat16"))


@pytest.mark.parametrize("bias_dtype", ALL_DTYPES)
@pytest.mark.parametrize("out_dtype", ALL_DTYPES)
def test_bias_and_result_may_have_any_float_dtype(bias_dtype, out_dtype):
    x, w, _ = operands(3, 20, 48, "bfloat16")
    bias = rounded_normal(np.random.default_rng(1), (20,), bias_dtype)
    expected = reference_native.linear(x, w, bias, "bfloat16", out_dtype)
    weight, added = Weight(to_torch(w, "bfloat16")), to_torch(bias, bias_dtype)
    got = linear(to_torch(x, "bfloat16"), weight, added, out_dtype=DTYPES[out_dtype])
    assert got.dtype == DTYPES[out_dtype]
    assert_same_bits(got.float(), expected)


@pytest.mark.parametrize("k", [16, 144, 1008])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_linear_is_within_its_error_budget_of_float64(dtype, k):
    x, w, bias = operands(5, 33, k, dtype)
    exact = x.astype(np.float64) @ w.astype(np.float64).T + bias
    size = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T + np.abs(bias)
    if dtype == "float32":
        # One rounding to nearest a product, and one for the bias, of a partial sum under `size`.
        budget = (k + 1) * 2.0**-24 * size
    else:
        # A step drops under 2^-25 of the largest term for each of 17 terms, each term under
        # `size`, then truncates the sum to 24 bits: 17 * 2^-25 + 2^-23 < 2^-20. Then the bias.
        budget = (-(-k // 16) * 2.0**-20 + 2.0**-24) * size
    got = linear(
        to_torch(x, dtype),
        Weight(to_torch(w, dtype)),
        to_torch(bias, dtype),
        out_dtype=torch.float32,
    )
    assert (np.abs(got.numpy() - exact) <= budget).all()


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_a_row_keeps_its_bits_in_any_slot_order_and_company(dtype):
    x, w, bias = operands(130, 40, 48, dtype)
    weight, added = Weight(to_torch(w, dtype)), to_torch(bias, dtype)
    assert_rows_independent(lambda rows: linear(rows, weight, added), to_torch(x, dtype), dtype)


def test_every_row_count_gives_the_same_bits():
    x, w, _ = operands(130, 33, 16, "bfloat16")
    rows, weight = to_torch(x, "bfloat16"), Weight(to_torch(w, "bfloat16"))
    whole = linear(rows, weight)
    for m in range(1, 131):
        assert_same_bits(linear(rows[:m], weight), whole[:m], f"{m} rows")


def test_rows_of_a_weight_alone_give_the_same_columns():
    x, w, _ = operands(3, 70, 48, "bfloat16")
    rows, table = to_torch(x, "bfloat16"), to_torch(w, "bfloat16")
    whole = linear(rows, Weight(table))
    assert_same_bits(linear(rows, Weight(table[5:38])), whole[:, 5:38])


@triton.jit
def _sums_of_blocks(x, w, y, n, k, BLOCK_K: tl.constexpr):
    """One row, wrongly: each block of k summed from zero, and the sums added."""
    cols, depth = tl.arange(0, 64), tl.arange(0, BLOCK_K)
    acc = tl.zeros((1, 64), tl.float32)
    for start in range(0, k, BLOCK_K):
        inside = start + depth < k
        a = tl.load(x + start + depth, mask=inside, other=0.0)[None, :]
        at = w + cols[:, None] * k + start + depth[None, :]
        b = tl.load(at, mask=(cols[:, None] < n) & inside[None, :], other=0.0)
        acc += tl.dot(a, b.T, tl.zeros((1, 64), tl.float32), input_precision="ieee")
    tl.store(y + cols[None, :], acc, mask=cols[None, :] < n)


def sums_of_blocks(x, w, block_k):
    y = torch.empty(len(x), len(w))
    for row in range(len(x)):
        _sums_of_blocks[(1,)](x[row], w, y[row], len(w), w.shape[1], BLOCK_K=block_k)
    return y


def test_a_kernel_that_adds_the_sums_of_blocks_fails_the_same_comparisons():
    values, w, _ = operands(5, 40, 256, "bfloat16")
    x, weight = to_torch(values, "bfloat16"), to_torch(w, "bfloat16")
    expected = reference_native.linear(values, w, dtype="bfloat16", out_dtype="float32")
    assert_same_bits(linear(x, Weight(weight), out_dtype=torch.float32), expected)
    assert not same_bits(sums_of_blocks(x, weight, 64), expected)
    assert not same_bits(sums_of_blocks(x, weight, 64), sums_of_blocks(x, weight, 128))
    with pytest.raises(AssertionError, match="row 0 alone"):
        assert_rows_independent(
            lambda rows: sums_of_blocks(rows, weight, 64 if len(rows) < 4 else 128), x
        )


def test_another_order_of_k_fails_the_same_comparison():
    x, w, _ = operands(5, 40, 48, "bfloat16")
    x *= np.exp2(np.random.default_rng(2).integers(-9, 9, 48))  # or the sums are nearly exact
    order = np.r_[16:32, 0:16, 32:48]  # two k16 steps exchanged
    expected = reference_native.linear(x, w, dtype="bfloat16", out_dtype="float32")
    weight = Weight(to_torch(w[:, order].copy(), "bfloat16"))
    got = linear(to_torch(x[:, order].copy(), "bfloat16"), weight, out_dtype=torch.float32)
    assert not same_bits(got, expected)


@pytest.mark.parametrize("config", every_config("bfloat16"), ids=label)
def test_only_the_result_is_written_and_only_the_operands_are_read(config):
    x, w, bias = operands(5, 35, 48, "bfloat16")
    wide = torch.full((9, 64), float("nan"), dtype=torch.bfloat16)
    wide[2:7, :48] = to_torch(x, "bfloat16")  # NaN right of, above and below every row
    out, buffer = guarded_out(5, 35, "bfloat16")
    weight = Weight(surrounded(to_torch(w, "bfloat16")))
    added = surrounded(to_torch(bias, "bfloat16"))
    got = linear(wide[2:7, :48], weight, added, out=out, config=config)
    assert got is out
    assert_same_bits(out.float(), reference_native.linear(x, w, bias, "bfloat16"))
    out.fill_(float("nan"))
    assert buffer.isnan().all()


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_infinite_nan_and_huge_rows_stay_theirs(dtype):
    x, w, _ = operands(70, 20, 48, dtype)
    weight = Weight(to_torch(w, dtype))
    alone = linear(to_torch(x, dtype), weight)
    x[3, 5], x[20, 0], x[40], x[41, 47] = np.inf, np.nan, 1e4, -np.inf
    x = torch.from_numpy(x).to(DTYPES[dtype])
    got = linear(x, weight)
    others = [row for row in range(70) if row not in (3, 20, 40, 41)]
    assert_same_bits(got[others], alone[others])
    assert not got[[3, 20, 41]].isfinite().any()
    assert_same_bits(got.float(), reference_native.linear(x.float().numpy(), w, dtype=dtype))


def test_a_row_stride_of_any_kind_is_served():
    x, w, _ = operands(6, 20, 48, "bfloat16")
    rows, weight = to_torch(x, "bfloat16"), Weight(to_torch(w, "bfloat16"))
    expected = linear(rows, weight)
    wide = torch.zeros(6, 101, dtype=torch.bfloat16)
    wide[:, 3:51] = rows
    assert_same_bits(linear(wide[:, 3:51], weight), expected, "odd address and stride")
    assert_same_bits(linear(rows[::2], weight), expected[::2], "every other row")
    same = linear(rows[:1].expand(6, 48), weight)
    assert_same_bits(same, expected[:1].expand(6, 20), "one row six times")
    assert_same_bits(linear(rows.T[:, 2:3].T.contiguous(), weight), expected[2:3], "one row")


@pytest.mark.parametrize("swap", [False, True])
def test_offsets_past_two_to_the_31_elements(swap):
    stride = 1 << 30  # row 2 starts at 2^31; only the pages that are used exist
    x, w, _ = operands(3, 20, 16, "bfloat16")
    elements = 2 * stride + 64
    spaces = [mmap.mmap(-1, 2 * elements, flags=mmap.MAP_PRIVATE) for _ in range(2)]
    far, out = (
        torch.frombuffer(space, dtype=torch.bfloat16).as_strided((3, size), (stride, 1))
        for space, size in zip(spaces, (16, 20), strict=True)
    )
    far.copy_(to_torch(x, "bfloat16"))
    config = LinearConfig(16, 16, 16, 4, 2, swap=swap)
    with pytest.MonkeyPatch.context() as patch:
        # Copies whole storages onto themselves otherwise, and so makes every page exist.
        from triton.runtime.interpreter import GridExecutor

        patch.setattr(GridExecutor, "_restore_args_dev", lambda *args: None)
        linear(far, Weight(to_torch(w, "bfloat16")), out=out, config=config)
    assert_same_bits(out.float(), reference_native.linear(x, w, dtype="bfloat16"))


def test_offsets_of_weight_rows_are_widened_before_the_product():
    # A weight past 2^31 elements is too large to multiply here.
    source = inspect.getsource(matmul.linear_pointers.fn)
    assert "cols.to(tl.int64)[:, None] * k" in source
    assert "rows.to(tl.int64)[:, None] * x_stride" in source


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_empty_inputs_give_empty_outputs(dtype):
    full, none = torch.zeros(5, 48, dtype=DTYPES[dtype]), torch.zeros(0, 48, dtype=DTYPES[dtype])
    assert linear(none, Weight(full)).shape == (0, 5)
    assert linear(full, Weight(none)).shape == (5, 0)
    assert linear(none, Weight(full)).dtype == DTYPES[dtype]


def bf16(*shape):
    return torch.zeros(shape, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"x: got shape \(3, 32\), expected \(m, 48\)", lambda w: linear(bf16(3, 32), w)),
        (r"x: got shape \(48,\)", lambda w: linear(bf16(48), w)),
        (r"x: got torch.float16, expected torch.bfloat16", lambda w: linear(bf16(3, 48).half(), w)),
        (r"x: got strides \(1, 3\)", lambda w: linear(bf16(48, 3).T, w)),
        (r"bias: got shape \(4,\), expected \(5,\)", lambda w: linear(bf16(3, 48), w, bf16(4))),
        (r"bias: got torch.int32", lambda w: linear(bf16(3, 48), w, bf16(5).int())),
        (r"bias: got strides \(2,\)", lambda w: linear(bf16(3, 48), w, bf16(10)[::2])),
        (r"out: got shape \(3, 4\)", lambda w: linear(bf16(3, 48), w, out=bf16(3, 4))),
        (r"out: got strides \(1, 3\)", lambda w: linear(bf16(3, 48), w, out=bf16(5, 3).T)),
        (
            r"out: got torch.bfloat16, expected torch.float32",
            lambda w: linear(bf16(3, 48), w, out=bf16(3, 5), out_dtype=torch.float32),
        ),
        (r"out: got torch.int32", lambda w: linear(bf16(3, 48), w, out=bf16(3, 5).int())),
        (r"out: got torch.int8", lambda w: linear(bf16(3, 48), w, out_dtype=torch.int8)),
        (
            r"config: got tma=True for rows 49 \(x\) and 48 \(weight\) elements apart",
            lambda w: linear(
                bf16(3, 49)[:, :48], w, config=LinearConfig(16, 16, 16, 4, 2, tma=True)
            ),
        ),
        (r"weight: got torch.int32", lambda w: Weight(bf16(3, 4).int())),
        (r"weight: got shape \(3,\)", lambda w: Weight(bf16(3))),
        (r"weight: got shape \(3, 0\)", lambda w: Weight(bf16(3, 0))),
        (r"weight: got strides \(1, 4\)", lambda w: Weight(bf16(3, 4).T)),
        (r"block_m: got 8", lambda w: LinearConfig(8, 16, 16, 4, 2)),
        (r"block_n: got 48", lambda w: LinearConfig(16, 48, 16, 4, 2)),
        (r"block_k: got 256", lambda w: LinearConfig(16, 16, 256, 4, 2)),
        (r"persistent: got True", lambda w: LinearConfig(16, 16, 16, 4, 2, persistent=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_argument_is_named(message, call):
    with pytest.raises(ValueError, match=message):
        call(Weight(bf16(5, 48)))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("arch", launch.ARCHITECTURES)
def test_tables_serve_every_row_count_and_say_so(arch, dtype):
    for n in (1, 576, 4096, 8192, 8193, 24576, 151936):
        for k in (7, 576, 4096):
            rows = matmul.table(arch, dtype, n, k)
            limits = [most for most, _ in rows]
            assert limits == sorted(set(limits))
            assert limits[-1] == matmul_table.OPEN_END
            assert {config for _, config in rows} <= set(matmul.configs(arch, dtype, n, k))
            for most, config in rows:
                assert matmul.select(arch, dtype, n, k, most) == config
            before = 0
            for most, config in rows:
                assert matmul.select(arch, dtype, n, k, before + 1) == config
                before = most


def test_descriptors_are_chosen_only_where_the_hardware_has_them():
    for arch in launch.ARCHITECTURES:
        for n in (576, 4096, 24576, 151936):
            chosen = matmul.configs(arch, torch.bfloat16, n, 4096)
            assert any(config.tma for config in chosen) == (arch >= 90)
            for odd in (
                matmul.table(arch, torch.bfloat16, n, 4100),
                matmul.table(arch, torch.bfloat16, n, 4096, aligned=False),
            ):
                assert not any(config.tma for _, config in odd)


@pytest.mark.parametrize("arch", [90, 100])
def test_one_family_of_instructions_serves_a_weight(arch):
    for n in (576, 4096, 12288, 24576, 151936):
        for config in matmul.configs(arch, torch.bfloat16, n, 4096):
            assert (config.block_n if config.swap else config.block_m) >= 64, config


def test_cases_are_few_and_name_every_argument():
    total = 0
    for arch in launch.ARCHITECTURES:
        listed = list(cases(arch))
        total += len(listed)
        assert len({case.name for case in listed}) == len(listed)
        for case in listed:
            arguments = set(inspect.signature(case.kernel.fn).parameters) - {"OVERLAP"}
            assert case.signature.keys() | case.constants.keys() == arguments, case.name
            assert not case.signature.keys() & case.constants.keys(), case.name
            assert case.aligned <= case.signature.keys(), case.name
    assert total <= 190
