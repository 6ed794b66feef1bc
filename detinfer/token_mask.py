"""Which tokens may follow, a bit each: bit ``t % 8`` of byte ``t // 8`` is token t's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TokenMask = npt.NDArray[np.uint8]  # [ceil(V / 8)]


def allows(mask: TokenMask, token: int) -> bool:
    """Return whether a token's bit is set."""
    return bool(mask[token >> 3] >> (token & 7) & 1)
