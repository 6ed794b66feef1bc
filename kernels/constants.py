"""Constants of the contract (docs/arithmetic.md), shared by all kernels; their ground floor.

Floats are hexadecimal, each exactly a binary32 value. Polynomials (rule 4) are minimax fits,
highest power first, evaluated by Horner's rule with one fma a step.
"""

from __future__ import annotations


def _floats(text: str) -> tuple[float, ...]:
    return tuple(map(float.fromhex, text.split()))


PAGE_SIZE = 64  # tokens in one KV page; also rule 3's block of keys

LOG2E = float.fromhex("0x1.715476p+0")
LN2_HI = float.fromhex("0x1.62e4p-1")  # 15 bits: n * LN2_HI is exact
LN2_LO = float.fromhex("0x1.7f7d1cp-20")
# Adding it leaves round-to-nearest-even(x) in the low bits.
ROUND_MAGIC = float.fromhex("0x1.8p+23")

EXP_LOW = float.fromhex("-0x1.5d589ep+6")  # below: +0 (the result would be under 2^-126)
EXP_HIGH = float.fromhex("0x1.62e42ep+6")  # above: +Inf
# (e^r - 1 - r) / r^2 on |r| <= 0.347
EXP = _floats("0x1.6da634p-10 0x1.1238c0p-7 0x1.555470p-5 0x1.555494p-3 0x1.000000p-1")

SQRT_HALF_BITS = 0x3F3504F3  # the mantissa of log's argument is taken in [sqrt(1/2), sqrt(2))
# (log(1 + f) - f + f^2 / 2) / f^3 on [sqrt(1/2) - 1, sqrt(2) - 1]
LOG = _floats(
    "-0x1.4205aap-4 0x1.07da40p-3 -0x1.0cde3cp-3 0x1.226afap-3 -0x1.54784ap-3 0x1.99a5d8p-3 "
    "-0x1.000224p-2 0x1.55554ap-2"
)

TANH_SMALL = 0.625  # below in magnitude: the polynomial; above: through exp
# (tanh(x) / x - 1) / x^2 in z = x^2
TANH = _floats(
    "0x1.19e1d2p-9 -0x1.0c3ff4p-7 0x1.639bc2p-6 -0x1.b9f034p-5 0x1.111070p-3 -0x1.555554p-2"
)

# erf(x) / x in z = x^2, |x| < 1
ERF = _floats(
    "0x1.4ad1fep-14 -0x1.a47e90p-11 0x1.5418dep-8 -0x1.b7fb8ep-6 0x1.ce2d1ep-4 "
    "-0x1.81273ep-2 0x1.20dd74p+0"
)
# exp(x^2) * erfc(x) in t = 1 / (1 + x / 2), 1 <= x <= 4
ERFC = _floats(
    "-0x1.b61fc0p-5 -0x1.d73024p-5 0x1.9dc304p-2 0x1.9e2e26p-4 0x1.52d66ap-2 0x1.182c88p-2 "
    "0x1.3e627ap-11"
)
ERF_ONE = 4.0  # from here on erf is 1 in binary32

SQRT_HALF = float.fromhex("0x1.6a09e6p-1")
SQRT_2_OVER_PI = float.fromhex("0x1.988454p-1")
GELU_CUBIC = float.fromhex("0x1.6e4e26p-5")  # 0.044715
SOFTPLUS_LINEAR = 20.0  # above: softplus(x) = x, as PyTorch's threshold

# Rule 1q. Activations are quantised by groups; a GGUF block format's values and bytes of a block.
GROUP = 32
ZERO_BELOW = 2.0**-100  # a group whose largest magnitude is smaller is all zeros
BLOCK_FORMATS = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}

# splitmix64 (Steele, Lea and Flood 2014) and the checksum's two keys (digits of pi)
SPLITMIX_GAMMA = 0x9E3779B97F4A7C15
SPLITMIX_MUL1 = 0xBF58476D1CE4E5B9
SPLITMIX_MUL2 = 0x94D049BB133111EB
CHECKSUM_KEYS = (0x243F6A8885A308D3, 0x13198A2E03707344)

GREEDY_BELOW = 1e-5  # temperatures under it are greedy: logit / T would overflow

# Philox 4x32-10 (Salmon et al. 2011)
PHILOX_M0 = 0xD2511F53
PHILOX_M1 = 0xCD9E8D57
PHILOX_W0 = 0x9E3779B9
PHILOX_W1 = 0xBB67AE85

# Rule 9b: eight 16-bit integers have this mean sum, and a standard deviation of 1 / NOISE_UNIT.
NOISE_CENTRE = 8 * 0xFFFF // 2
NOISE_UNIT = float.fromhex("0x1.3988e2p-16")
