"""Head norms, rotation and cache write in Triton's interpreter: the reference's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from benchmarks.interpreter import install

install()

from guarded_tensors import assert_guards_untouched, guarded, run  # noqa: E402

from detinfer.kernels import reference, reference_native  # noqa: E402
from detinfer.kernels.triton import rope  # noqa: E402
from detinfer.kernels.triton.cache import write_cache  # noqa: E402
from detinfer.testing import (  # noqa: E402
    DTYPES,
    SPECIAL,
    assert_rows_independent,
    assert_same_bits,
    rounded_normal,
    same_bits,
    to_torch,
)

F32 = np.float32
EPS = 1e-6
PAGES, POSITIONS = 3, 200
# heads, kv heads, head size, columns that turn
HEADS = ((4, 2, 16, 16), (3, 1, 20, 8), (5, 5, 64, 64), (2, 1, 24, 0))


class Batch:
    """Random rows of a fused projection, with all that the kernel takes besides."""

    def __init__(self, tokens, shape, dtype="float32", norm=True, seed=0):
        self.heads, self.kv_heads, self.size, self.rotary = shape
        self.dtype = dtype
        rng = np.random.default_rng(seed)
        self.qkv = rounded_normal(rng, (tokens, self.heads + 2 * self.kv_heads, self.size), dtype)
        self.positions = rng.permutation(POSITIONS)[:tokens].astype(np.int32)
        self.positions[0] = 0  # sin is zero there: signs of zeros show
        self.slots = rng.permutation(PAGES * 64)[:tokens].astype(np.int32)
        angle = np.arange(POSITIONS)[:, None] * rng.uniform(0.001, 1, max(1, self.rotary // 2))
        self.cos, self.sin = np.cos(angle).astype(F32), np.sin(angle).astype(F32)
        self.norms = [rounded_normal(rng, (self.size,), dtype) if norm else None for _ in "qk"]

    def expected(self, variant):
        """Queries, keys and values by the reference."""
        heads, kv_heads = self.heads, self.kv_heads
        q, k, v = np.split(self.qkv, [heads, heads + kv_heads], axis=1)
        return *(self.turned(x, w, variant) for x, w in zip((q, k), self.norms, strict=True)), v

    def turned(self, x, weight, variant):
        if weight is not None:
            x = reference_native.rms_norm(x, weight, EPS, variant, self.dtype)
        if not self.rotary:
            return x
        cos, sin = (table[self.positions][:, None] for table in (self.cos, self.sin))
        turned = reference.rope(x[..., : self.rotary], cos, sin, self.dtype)
        return np.concatenate([turned, x[..., self.rotary :]], axis=-1)

    def guarded_caches(self):
        """Poisoned caches with the buffers they lie in."""
        shape = (PAGES, self.kv_heads, 64, self.size)
        return [guarded(shape, DTYPES[self.dtype]) for _ in "kv"]

    def caches(self):
        return [cache for cache, _ in self.guarded_caches()]

    def launch(self, caches=None, variant="scale_rounded", rows=slice(None), **changed):
        """Queries of these rows; keys and values go to the caches, or to some of no interest."""
        k_cache, v_cache = caches or self.caches()
        qkv = to_torch(self.qkv, self.dtype)[rows].flatten(1)
        table = [torch.from_numpy(t) if self.rotary else None for t in (self.cos, self.sin)]
        q_norm, k_norm = (None if w is None else to_torch(w, self.dtype) for w in self.norms)
        positions, slots = (torch.from_numpy(a)[rows] for a in (self.positions, self.slots))
        arguments = {"qkv": qkv, "positions": positions, "slots": slots, "cos": table[0],
                     "sin": table[1], "k_cache": k_cache, "v_cache": v_cache, "heads": self.heads,
                     "kv_heads": self.kv_heads, "q_norm": q_norm, "k_norm": k_norm, "eps": EPS,
                     "variant": variant}  # fmt: skip
        return run(rope.rotate_and_cache, **(arguments | changed))


def scattered(rows, slots, dtype):
    """A poisoned cache with these rows [T, kv_heads, D] in their slots."""
    cache = np.full((PAGES, rows.shape[1], 64, rows.shape[2]), np.nan, F32)
    for row, slot in zip(rows, slots, strict=True):
        if slot >= 0:
            cache[slot // 64, :, slot % 64] = row
    return torch.from_numpy(cache).to(DTYPES[dtype])


@pytest.mark.parametrize("shape", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["none", "scale_rounded", "round_scaled", "one_plus"])
def test_queries_and_pages_equal_the_reference(shape, dtype, variant):
    norm = variant != "none"
    batch = Batch(3, shape, dtype, norm)
    batch.slots[1] = -1
    variant = variant if norm else "scale_rounded"
    (k_cache, k_buffer), (v_cache, v_buffer) = batch.guarded_caches()
    got = batch.launch([k_cache, v_cache], variant)
    q, k, v = batch.expected(variant)
    assert_same_bits(got.float(), q, "q")
    assert_same_bits(k_cache, scattered(k, batch.slots, dtype), "k")
    assert_same_bits(v_cache, scattered(v, batch.slots, dtype), "v")
    assert_guards_untouched(k_buffer)
    assert_guards_untouched(v_buffer)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_wide_angles_round_once(dtype):
    batch = Batch(5, HEADS[0], dtype, norm=False)
    got = batch.launch(wide_angles=True).float()
    cos, sin = (table[batch.positions][:, None] for table in (batch.cos, batch.sin))
    once = reference.round_to(reference.rope(batch.qkv[:, :4], cos, sin, "float32"), dtype)
    assert_same_bits(got, once)
    assert not same_bits(got, batch.launch().float())


def test_signs_of_zeros_and_subnormals_are_the_reference_s():
    batch = Batch(len(SPECIAL), (2, 1, 32, 32), norm=False)
    for i, value in enumerate(SPECIAL):
        batch.qkv[i, :, ::2] = value
        batch.qkv[i, :, 16:27] = SPECIAL
    got = batch.launch()
    assert_same_bits(got, batch.expected("scale_rounded")[0])


def test_float32_weights_on_bfloat16_heads():
    batch = Batch(2, HEADS[0], "bfloat16")
    norms = {"q_norm": to_torch(batch.norms[0]), "k_norm": to_torch(batch.norms[1])}
    got = batch.launch(**norms)
    assert_same_bits(got.float(), batch.expected("scale_rounded")[0])


def test_rotation_is_accurate():
    """Two products and a sum, a rounding of 2^-24 each: 2 of the absolute terms' sum together."""
    batch = Batch(9, (3, 1, 64, 64), norm=False)
    got = batch.launch().numpy()
    x1, x2 = np.split(batch.qkv[:, :3].astype(np.float64), 2, axis=-1)
    cos, sin = (t[batch.positions].astype(np.float64)[:, None] for t in (batch.cos, batch.sin))
    exact = np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    terms = np.concatenate([abs(x1 * cos) + abs(x2 * sin), abs(x2 * cos) + abs(x1 * sin)], axis=-1)
    assert (np.abs(got - exact) <= 2.01 * 2.0**-24 * terms).all()


def with_heads_to_a_program(monkeypatch, batch, block):
    monkeypatch.setattr(rope, "configuration", lambda size, tokens: (block, 1))
    caches = batch.caches()
    return batch.launch(caches), *caches


@pytest.mark.parametrize("shape", HEADS[:3])
def test_configurations_do_not_change_bits(monkeypatch, shape):
    batch = Batch(3, shape, "bfloat16")
    first = with_heads_to_a_program(monkeypatch, batch, 1)
    for block in (2, 4, 16):
        for got, expected in zip(
            with_heads_to_a_program(monkeypatch, batch, block), first, strict=True
        ):
            assert_same_bits(got, expected, f"{block} heads")


@triton.jit
def halving_sum(v, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Another tree over the lanes, as another layout of threads would add them."""
    for level in tl.static_range(1, 11):
        if LANES >> level > 0:
            v = tl.sum(tl.reshape(v, (ROWS, 2, LANES >> level)), 1)
    return tl.reshape(v, (ROWS,))


def test_a_norm_that_follows_the_configuration_fails_the_same_comparison(monkeypatch):
    batch = Batch(3, (5, 5, 48, 48))
    first = with_heads_to_a_program(monkeypatch, batch, 1)
    monkeypatch.setattr(rope, "adjacent_sum", halving_sum)
    assert not same_bits(with_heads_to_a_program(monkeypatch, batch, 4)[0], first[0])


def test_prompt_chunks_and_single_tokens_give_the_same_bits():
    batch = Batch(9, HEADS[0], "bfloat16")
    whole = batch.caches()
    q = batch.launch(whole)
    for chunk in (1, 4):
        parts = batch.caches()
        starts = range(0, 9, chunk)
        got = [batch.launch(parts, rows=slice(s, s + chunk)) for s in starts]
        assert_same_bits(torch.cat(got), q, f"chunks of {chunk}")
        for part, cache in zip(parts, whole, strict=True):
            assert_same_bits(part, cache, f"pages, chunks of {chunk}")


def test_a_long_prompt_takes_another_configuration_and_keeps_its_bits(monkeypatch):
    monkeypatch.setattr("detinfer.kernels.triton.cache.MANY_TOKENS", 16)
    rows = 17
    batch = Batch(9, (1, 1, 16, 16))
    assert rope.configuration(16, rows) != rope.configuration(16, 9)
    few = batch.launch()
    order = np.arange(rows) % 9
    batch.slots = np.where(np.arange(rows) < 9, batch.slots[order], -1).astype(np.int32)
    batch.qkv, batch.positions = batch.qkv[order], batch.positions[order]
    many = batch.launch()
    assert_same_bits(many, few[order])


def test_rows_are_independent_of_order_and_count():
    batch = Batch(9, HEADS[1])

    def op(rows):
        kept = rows[:, 0].long()
        return batch.launch(rows=kept)

    assert_rows_independent(op, torch.arange(9)[:, None], "rotate_and_cache")


def test_a_position_counted_in_the_batch_is_found():
    batch = Batch(9, HEADS[1])

    def op(rows):
        positions = torch.arange(len(rows), dtype=torch.int32)
        return batch.launch(rows=rows[:, 0].long(), positions=positions)

    with pytest.raises(AssertionError, match="elements differ"):
        assert_rows_independent(op, torch.arange(9)[:, None])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_broken_token_or_head_spoils_no_other(bad):
    batch = Batch(4, HEADS[0])
    clean = batch.caches()
    q = batch.launch(clean)
    batch.qkv[2] *= 1e4
    batch.qkv[2, 1] = bad
    dirty = batch.caches()
    got = batch.launch(dirty)
    others = np.arange(4) != 2
    assert_same_bits(got[others], q[others])
    assert not same_bits(got[2, 1], q[2, 1])
    assert_same_bits(got, batch.expected("scale_rounded")[0])
    page, place = divmod(int(batch.slots[2]), 64)
    for a, b in zip(dirty, clean, strict=True):
        a[page, :, place] = b[page, :, place] = 0
        assert_same_bits(a, b)


def test_a_padded_token_writes_to_no_page():
    batch = Batch(3, HEADS[0])
    batch.slots[:] = -1
    caches = batch.guarded_caches()
    batch.launch([cache for cache, _ in caches])
    assert all(buffer.isnan().all() for _, buffer in caches)


def test_rows_of_qkv_and_pages_may_lie_apart():
    batch = Batch(3, HEADS[0])
    k_cache, v_cache = batch.caches()
    q = batch.launch([k_cache, v_cache])
    both, buffer = guarded((PAGES, 2, *k_cache.shape[1:]), torch.float32)
    wide = torch.full((3, batch.qkv[0].size + 16), np.nan)
    wide[:, : batch.qkv[0].size] = torch.from_numpy(batch.qkv).flatten(1)
    got = batch.launch([both[:, 0], both[:, 1]], qkv=wide[:, : batch.qkv[0].size])
    assert_guards_untouched(buffer)
    assert_same_bits(got, q)
    assert_same_bits(both[:, 0], k_cache)
    assert_same_bits(both[:, 1], v_cache)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(16, 16), (24, 8), (3, 40)])
def test_write_cache_keeps_bits_from_any_strides(dtype, dims):
    rng = np.random.default_rng(1)
    k, v = (rounded_normal(rng, (5, 3, d), dtype) for d in dims)
    slots = np.array([70, 0, -1, 191, 64], np.int32)
    caches = [guarded((PAGES, 3, 64, d), DTYPES[dtype]) for d in dims]
    both = torch.cat([to_torch(k, dtype), to_torch(v, dtype)], dim=-1)  # one row after the other
    write_cache(
        both[..., : dims[0]],
        both.transpose(0, 1).contiguous().transpose(0, 1)[..., dims[0] :],
        torch.from_numpy(slots),
        *(cache for cache, _ in caches),
    )
    for (cache, buffer), rows in zip(caches, (k, v), strict=True):
        assert_same_bits(cache, scattered(rows, slots, dtype))
        assert_guards_untouched(buffer)


def test_a_given_output_is_filled_and_returned():
    batch = Batch(3, HEADS[0])
    caches = batch.caches()
    expected = batch.launch(caches)
    out, buffer = guarded((3, 4, 16), torch.float32)
    qkv = to_torch(batch.qkv).flatten(1)
    index = [torch.from_numpy(a) for a in (batch.positions, batch.slots)]
    table = [torch.from_numpy(a) for a in (batch.cos, batch.sin)]
    weights = dict(zip(("q_norm", "k_norm"), map(to_torch, batch.norms), strict=True))
    got = rope.rotate_and_cache(
        qkv, *index, *table, *caches, heads=4, kv_heads=2, eps=EPS, out=out, **weights
    )
    assert got is out
    assert_guards_untouched(buffer)
    assert_same_bits(out, expected)


def test_no_tokens_give_no_rows():
    batch = Batch(3, HEADS[0])
    caches = batch.caches()
    assert batch.launch(caches, rows=slice(0, 0)).shape == (0, 4, 16)
    rows, slots = torch.ones(0, 2, 16), torch.ones(0, dtype=torch.int32)
    write_cache(rows, rows, slots, *caches)
    assert all(cache.isnan().all() for cache in caches)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qkv": torch.ones(3, 127)}, r"qkv: got shape \(3, 127\), expected \(T, a multiple of 8"),
        ({"qkv": torch.ones(3, 8 * 1040)}, "qkv: got heads of 1040, expected at most 1024"),
        ({"qkv": torch.ones(3, 8, 16)}, r"qkv: got shape \(3, 8, 16\)"),
        ({"qkv": torch.ones(128, 3).T}, "qkv: got strides"),
        ({"qkv": torch.ones(3, 128).double()}, "qkv: got torch.float64"),
        ({"positions": torch.ones(3).long()}, "positions: got torch.int64, expected torch.int32"),
        ({"slots": torch.ones(4).int()}, r"slots: got shape \(4,\), expected \(3,\)"),
        ({"cos": None}, "sin: got one of cos and sin, expected both or neither"),
        ({"cos": torch.ones(9, 9)}, r"cos: got shape \(9, 9\), expected \(P, at most 8\)"),
        ({"sin": torch.ones(200, 7)}, r"sin: got shape \(200, 7\), expected \(200, 8\)"),
        ({"sin": torch.ones(200, 8).half()}, "sin: got torch.float16"),
        ({"sin": torch.ones(8, 200).T}, "sin: got strides"),
        ({"k_cache": torch.ones(3, 2, 32, 16)}, "k_cache: got shape"),
        ({"v_cache": torch.ones(3, 2, 64, 16).half()}, "v_cache: got torch.float16"),
        ({"v_cache": torch.ones(3, 64, 2, 16).transpose(1, 2)}, "v_cache: got strides"),
        ({"q_norm": None}, "k_norm: got one of q_norm and k_norm, expected both or neither"),
        ({"k_norm": torch.ones(15)}, r"k_norm: got shape \(15,\), expected \(16,\)"),
        ({"variant": "l2"}, "variant: got 'l2'"),
        ({"out": torch.ones(3, 64)}, r"out: got shape \(3, 64\), expected \(3, 4, 16\)"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    batch = Batch(3, HEADS[0])
    with pytest.raises(ValueError, match=message):
        batch.launch(**changed)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.ones(3, 2), r"k: got shape \(3, 2\)"),
        (1, torch.ones(3, 1, 16), r"v: got shape \(3, 1, 16\), expected \(3, 2, 16\)"),
        (1, torch.ones(3, 2, 16).half(), "v: got torch.float16, expected torch.float32"),
        (2, torch.ones(3), "slots: got torch.float32, expected torch.int32"),
        (3, torch.ones(3, 2, 64, 8), "k_cache: got shape"),
        (4, torch.ones(3, 2, 64, 16).half(), "v_cache: got torch.float16"),
    ],
)
def test_what_does_not_fit_is_not_written(place, value, message):
    rows, cache = torch.ones(3, 2, 16), torch.ones(3, 2, 64, 16)
    arguments = [rows, rows, torch.ones(3, dtype=torch.int32), cache, cache]
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        write_cache(*arguments)
