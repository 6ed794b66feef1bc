"""The two products of attention: where elements of a page are read (docs/arithmetic.md, rule 3).

A page of keys [k_dim, 64] is a panel of the linear layer's own tile, and one of values [64, v_pad]
is too, its chains resumed from the running output. At few rows reading is all that takes time, so
each product asks for the page that is read after it.
"""

from __future__ import annotations

from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.microkernel import make_tile
from detinfer.kernels.cpu.pages import PAGE
from detinfer.kernels.cpu.vector import LANES, WIDE

_narrow_keys = make_tile(1, None)
_half_keys, _keys = (make_tile(v, None, ahead=True) for v in (2, 4))
_values, _narrow_values = (make_tile(v, None, ahead=True, scaled=True) for v in (4, 1))


@kernel
def multiply_keys(m, q, keys, size, k_dim, columns, scores, zeros, ahead):
    """``scores[m, 64] = q[m, k_dim] @ keys[k_dim, 64]``, at least the first ``columns``.

    A number of the page has ``size`` bytes.
    """
    if columns <= LANES:
        _narrow_keys(m, q, k_dim, keys, PAGE, zeros, 0, scores, PAGE, k_dim, size)
    elif columns <= 2 * LANES:
        _half_keys(m, q, k_dim, keys, PAGE, zeros, 0, scores, PAGE, k_dim, size, ahead)
    else:
        _keys(m, q, k_dim, keys, PAGE, zeros, 0, scores, PAGE, k_dim, size, ahead)


@kernel
def multiply_values(m, p, values, size, v_pad, low, high, factors, o, ahead):
    """``o[m, v_pad]``, times its rows' factors, resumes its chains over keys [low, high)."""
    p, v, k = p + low * 4, values + low * v_pad * size, high - low
    for column in range(0, v_pad, WIDE):
        at, to, following = v + column * size, o + column * 4, ahead + column * PAGE * size
        if v_pad - column >= WIDE:
            _values(m, p, PAGE, at, v_pad, to, v_pad, to, v_pad, k, size, following, factors)
        else:
            for narrow in range(0, v_pad - column, LANES):
                here = to + narrow * 4
                _narrow_values(m, p, PAGE, at + narrow * size, v_pad, here, v_pad, here, v_pad, k,
                               size, following + narrow * PAGE * size, factors)  # fmt: skip
