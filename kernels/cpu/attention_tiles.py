"""The two products of attention: where elements of a page are read (docs/arithmetic.md, rule 3).

A page of keys [k_dim, 64] is a panel of the linear layer's own tile, and one of values [64, v_pad]
is too, its chains resumed from the running output. At few rows reading is all that takes time, so
each product asks for the page that is read after it.
"""

from __future__ import annotations

from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.microkernel import make_tile, tile_narrow
from detinfer.kernels.cpu.vector import LANES, WIDE

PAGE = PAGE_SIZE

_half_keys, _keys = make_tile(2, False, ahead=True), make_tile(4, False, ahead=True)
_values, _narrow_values = (make_tile(v, False, ahead=True, scaled=True) for v in (4, 1))


@kernel
def multiply_keys(m, q, keys, k_dim, columns, scores, zeros, ahead):
    """``scores[m, 64] = q[m, k_dim] @ keys[k_dim, 64]``, at least the first ``columns``."""
    if columns <= LANES:
        tile_narrow(m, q, k_dim, keys, PAGE, zeros, 0, scores, PAGE, k_dim)
    elif columns <= 2 * LANES:
        _half_keys(m, q, k_dim, keys, PAGE, zeros, 0, scores, PAGE, k_dim, ahead)
    else:
        _keys(m, q, k_dim, keys, PAGE, zeros, 0, scores, PAGE, k_dim, ahead)


@kernel
def multiply_values(m, p, values, v_pad, low, high, factors, o, ahead):
    """``o[m, v_pad]``, times its rows' factors, resumes its chains over keys [low, high)."""
    p, v, k = p + low * 4, values + low * v_pad * 4, high - low
    for column in range(0, v_pad, WIDE):
        at, to, following = v + column * 4, o + column * 4, ahead + column * PAGE * 4
        if v_pad - column >= WIDE:
            _values(m, p, PAGE, at, v_pad, to, v_pad, to, v_pad, k, following, factors)
        else:
            for narrow in range(0, v_pad - column, LANES):
                here = narrow * 4
                _narrow_values(m, p, PAGE, at + here, v_pad, to + here, v_pad, to + here, v_pad, k,
                               following + narrow * PAGE * 4, factors)  # fmt: skip
