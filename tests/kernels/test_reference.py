"""The oracle itself: against exact fractions and float64."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from detinfer.kernels import reference
from detinfer.testing import SPECIAL, assert_same_bits, same_bits

F32 = np.float32
LARGEST = Fraction(float(np.finfo(F32).max))


def nearest_even(value: Fraction) -> np.float32:
    """The binary32 nearest to an exact value, found by comparing distances."""
    if abs(value) >= LARGEST + Fraction(2) ** 103:
        return F32(np.inf if value > 0 else -np.inf)
    if abs(value) >= LARGEST:
        return F32(float(LARGEST) if value > 0 else -float(LARGEST))
    guess = F32(float(value))
    with np.errstate(over="ignore", under="ignore"):
        candidates = [guess, np.nextafter(guess, F32(-np.inf)), np.nextafter(guess, F32(np.inf))]
    finite = [candidate for candidate in candidates if np.isfinite(candidate)]

    def distance(candidate: np.float32) -> tuple[Fraction, int]:
        return abs(Fraction(float(candidate)) - value), int(candidate.view(np.uint32)) & 1

    return min(finite, key=distance)


def adversarial_triples(rng: np.random.Generator) -> np.ndarray:
    """Products and addends that cancel, tie, underflow or overflow."""
    any_bits = rng.integers(0, 2**32, (3000, 3), dtype=np.uint64).astype(np.uint32).view(F32)
    a = rng.standard_normal((3000, 3)).astype(F32)
    cancelling = a.copy()
    cancelling[:, 2] = -(a[:, 0] * a[:, 1])
    # The addend is half a unit of the product's last place: near-ties, broken by its tail.
    tie = a.copy()
    tie[:, 2] = np.ldexp(F32(1), np.frexp(a[:, 0] * a[:, 1])[1] - 25)
    small = a.copy()
    small[:, :2] *= F32(2.0**-74)
    small[:, 2] *= F32(2.0**-146)
    # A product one hair off half a unit of the addend's last place: binary64 sees an exact tie.
    delta = np.ldexp(F32(1), rng.integers(-20, -14, 3000))
    above = rng.integers(0, 2, 3000, dtype=bool)
    hair = np.stack(
        [
            np.where(above, F32(1 + 2.0**-12), F32(1) + delta) * F32(2.0**-24),
            np.where(above, F32(1 - 2.0**-12 + 2.0**-24), F32(1) - delta),
            rng.uniform(1, 2, 3000).astype(F32),
        ],
        axis=-1,
    )
    hair *= rng.choice(np.array([-1, 1], F32), (3000, 3))
    subnormal_hair = hair.copy()
    subnormal_hair[:, 1:] *= F32(2.0**-126)
    special = np.stack(np.meshgrid(SPECIAL, SPECIAL, SPECIAL), axis=-1).reshape(-1, 3)
    triples = np.concatenate([any_bits, a, cancelling, tie, small, hair, subnormal_hair, special])
    return triples[np.isfinite(triples).all(axis=1)]


def test_fma_is_the_correctly_rounded_value_of_the_exact_result():
    triples = adversarial_triples(np.random.default_rng(0))
    got = reference.fma(*triples.T)
    exact = [Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)) for a, b, c in triples]
    nonzero = np.array([value != 0 for value in exact])
    expected = np.array([nearest_even(value) for value in exact], F32)
    assert_same_bits(got[nonzero], expected[nonzero], "fma")
    assert (got[~nonzero] == 0).all()
    # Negative control: rounding twice goes wrong somewhere, or the set is too tame.
    with np.errstate(over="ignore"):
        twice = (triples[:, 0].astype(float) * triples[:, 1] + triples[:, 2]).astype(F32)
    assert not same_bits(twice[nonzero], expected[nonzero])


def test_fma_vector_that_binary64_rounds_twice():
    a, b, c = F32(2**-24 * (1 + 2**-20)), F32(1 - 2**-20), F32(1 + 2**-23)
    assert float(reference.fma(a, b, c)) == 1 + 2**-23
    assert float(F32(float(a) * float(b) + float(c))) == 1 + 2**-22  # what must not happen


def test_fma_signs_of_zero_infinities_and_nan():
    zero, inf, nan = F32(0), F32(np.inf), F32(np.nan)
    assert_same_bits(reference.fma(-zero, 1, zero), zero)
    assert_same_bits(reference.fma(-zero, 1, -zero), -zero)
    assert_same_bits(reference.fma(1, 1, -1), zero)
    assert_same_bits(reference.fma(inf, 1, -1e30), inf)
    assert_same_bits(reference.fma(3e38, 3, 0), inf)
    assert_same_bits(reference.fma(3e38, 3, -inf), -inf)
    for triple in ((inf, 0, 1), (inf, 1, -inf), (nan, 1, 1), (1, 1, nan)):
        assert np.isnan(reference.fma(*triple))


def test_halving_tree_adds_halves():
    lanes = np.array([2.0**24, 1, -(2.0**24), 1, 0, 0, 0, 0.5], F32)
    by_hand = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + (
        (lanes[1] + lanes[5]) + (lanes[3] + lanes[7])
    )
    assert_same_bits(reference.halving_tree(lanes), by_hand)
    assert not same_bits(by_hand, F32(np.add.accumulate(lanes)[-1]))


@pytest.mark.parametrize("size", [1, 63, 64, 65, 130, 1000])
def test_lane_sum_is_the_contract_element_by_element(size):
    x = np.random.default_rng(size).standard_normal(size).astype(F32)
    lanes = [F32(0)] * 64
    squares = [F32(0)] * 64
    for j, value in enumerate(x):
        lanes[j % 64] = lanes[j % 64] + value
        squares[j % 64] = reference.fma(value, value, squares[j % 64])
    for got, wanted in (
        (reference.lane_sum(x), lanes),
        (reference.lane_sum(x, squares=True), squares),
    ):
        while len(wanted) > 1:
            half = len(wanted) // 2
            wanted = [a + b for a, b in zip(wanted[:half], wanted[half:], strict=True)]
        assert_same_bits(got, wanted[0])


@pytest.mark.parametrize(("depth", "segments"), [(64, 1), (128, 2), (192, 1), (256, 4), (576, 1),
                                                 (1000, 1), (1024, 8), (1536, 8)])  # fmt: skip
def test_linear_is_the_contract_element_by_element(depth, segments):
    rng = np.random.default_rng(depth)
    x, w = rng.standard_normal((2, depth)).astype(F32), rng.standard_normal((3, depth)).astype(F32)
    bias = rng.standard_normal(3).astype(F32)
    got = reference.linear(x, w, bias)
    step = depth // segments
    for m, n in np.ndindex(2, 3):
        s = []
        for start in range(0, depth, step):
            a = F32(0)
            for k in range(start, start + step):
                a = reference.fma(x[m, k], w[n, k], a)
            s.append(a)
        while len(s) > 1:
            s = [s[i] + s[i + 1] for i in range(0, len(s), 2)]
        assert_same_bits(got[m, n], s[0] + bias[n])


def test_linear_multiplies_integers_up_to_2_to_24_exactly():
    rng = np.random.default_rng(3)
    x = rng.integers(-32, 33, (5, 512)).astype(F32)
    w = rng.integers(-511, 512, (7, 512)).astype(F32)
    exact = x.astype(np.int64) @ w.astype(np.int64).T
    assert (abs(x).astype(np.int64) @ abs(w).astype(np.int64).T).max() < 2**24
    np.testing.assert_array_equal(reference.linear(x, w).astype(np.int64), exact)


def test_norms_are_within_a_few_roundings_of_float64():
    rng = np.random.default_rng(4)
    x, w, b = (rng.standard_normal(shape).astype(F32) for shape in ((5, 576), 576, 576))
    x64 = x.astype(np.float64)
    rms = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5)
    centred = x64 - x64.mean(-1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w + b
    for got, exact in (
        (reference.rms_norm(x, None, 1e-5, "scale_rounded"), rms),
        (reference.rms_norm(x, w, 1e-5, "scale_rounded"), rms * w),
        (reference.rms_norm(x, w, 1e-5, "round_scaled"), rms * w),
        (reference.rms_norm(x, w, 1e-5, "one_plus"), rms * (1 + w.astype(np.float64))),
        (reference.layer_norm(x, w, b, 1e-5), layer),
    ):
        np.testing.assert_allclose(got, exact, rtol=2**-20, atol=2**-20)


def test_rms_norm_variants_round_at_different_places():
    x = np.random.default_rng(5).standard_normal((4, 64)).astype(F32)
    x, w = reference.round_bf16(x), reference.round_bf16(x[0] + 1)
    first, second = (
        reference.rms_norm(x, w, 1e-5, variant, "bfloat16")
        for variant in ("scale_rounded", "round_scaled")
    )
    assert not same_bits(first, second)
    plus = reference.rms_norm(x, w - 1, 1e-5, "one_plus", "bfloat16")
    assert_same_bits(
        plus, reference.rms_norm(x, F32(1) + (w - 1), 1e-5, "round_scaled", "bfloat16")
    )


@pytest.mark.parametrize("options", [{}, {"window": 65}, {"softcap": 5.0}, {"sinks": True}])
def test_attention_is_within_a_few_roundings_of_float64(options):
    rng = np.random.default_rng(6)
    keys, heads, kv_heads, k_dim, v_dim = 530, 4, 2, 16, 9
    q = rng.standard_normal((3, heads, k_dim)).astype(F32)
    k = rng.standard_normal((keys, kv_heads, k_dim)).astype(F32)
    v = rng.standard_normal((keys, kv_heads, v_dim)).astype(F32)
    positions = np.array([0, 70, 529])
    sinks = rng.standard_normal(heads).astype(F32) if options.pop("sinks", False) else None
    got = reference.attention(q, positions, k, v, 0.25, sinks=sinks, **options)
    window, softcap = options.get("window", 0), options.get("softcap", 0.0)
    for row, head in np.ndindex(3, heads):
        start = max(0, positions[row] - window + 1) if window else 0
        chosen = slice(start, positions[row] + 1)
        s = k[chosen, head // 2].astype(np.float64) @ q[row, head] * 0.25
        s = softcap * np.tanh(s / softcap) if softcap else s
        p = np.exp(s)
        total = p.sum() + (np.exp(np.float64(sinks[head])) if sinks is not None else 0)
        exact = p @ v[chosen, head // 2] / total
        np.testing.assert_allclose(got[row, head], exact, rtol=2**-18, atol=2**-20)


def test_attention_reads_nothing_that_is_masked():
    rng = np.random.default_rng(7)
    q, k, v = (rng.standard_normal((140, 1, 8)).astype(F32) for _ in range(3))
    position = np.array([100])
    clean = reference.attention(q[:1], position, k, v, 0.3, window=30)
    k[:71], k[101:], v[:71], v[101:] = np.nan, np.inf, np.inf, np.nan
    assert_same_bits(reference.attention(q[:1], position, k, v, 0.3, window=30), clean)


def test_softmax_and_log_softmax_are_within_a_few_roundings_of_float64():
    x = (np.random.default_rng(8).standard_normal((3, 5000)) * 10).astype(F32)
    x64 = x.astype(np.float64)
    exact = x64 - x64.max(-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    np.testing.assert_allclose(reference.log_softmax(x), exact, rtol=2**-22, atol=2**-22)
    # x - m stays under 128 here, so its own rounding moves exp by up to 2^-18.
    assert np.ptp(x, axis=-1).max() < 128
    np.testing.assert_allclose(reference.softmax(x), np.exp(exact), rtol=2**-18 + 2**-21)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_to_16_bits_is_nearest_even_with_subnormals(dtype):
    patterns = np.arange(0, 2**32, 65537 // 2, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([patterns.view(F32), SPECIAL, np.array([np.nan, np.inf, -np.inf], F32)])
    by_torch = torch.from_numpy(x).to(getattr(torch, dtype)).float()
    assert_same_bits(reference.round_to(x, dtype), by_torch)


def test_bf16_nan_is_one_pattern():
    nans = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(F32)
    assert (reference.round_bf16(nans).view(np.uint32) == 0x7FC00000).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rope_is_what_hugging_face_code_computes(dtype):
    rng = np.random.default_rng(9)
    torch_dtype = getattr(torch, dtype)
    x = torch.from_numpy(rng.standard_normal((5, 3, 16)).astype(F32)).to(torch_dtype)
    angle = torch.from_numpy(rng.standard_normal((5, 1, 8)).astype(F32))
    cos, sin = angle.cos(), angle.sin()
    wide_cos, wide_sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    half = torch.cat([-x[..., 8:], x[..., :8]], dim=-1)
    expected = x * wide_cos.to(torch_dtype) + half * wide_sin.to(torch_dtype)
    got = reference.rope(x.float().numpy(), cos.numpy(), sin.numpy(), dtype)
    assert_same_bits(got, expected.float())


# Salmon et al. 2011, Random123's known-answer file kat_vectors.
