"""The digest of a solve: a chain over all that every step computed, latent state included.

Equal digests mean that model, board, parameters, every grid, every q and every bit of every state
on the way were equal. Nothing of slot, batch, order or time is in it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from detinfer.recursive.params import SolveParams
from detinfer.recursive.puzzle import Puzzle

FORMAT = "detinfer-solve-1"
_STEP = struct.Struct("<I")


def first_link(parts: Mapping[str, str], puzzle: Puzzle, params: SolveParams) -> bytes:
    """Return what a chain starts from: SHA-256 of the request and the model, as canonical JSON.

    Args:
        parts: what the model's bits depend on: contract, weights, kernels.
    """
    request = {
        "format": FORMAT,
        "model": dict(parts),
        "task": puzzle.task.name,
        "board": puzzle.text,
        "params": params.that_matter(),
    }
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).digest()


def next_link(
    link: bytes,
    step: int,
    grid: npt.NDArray[np.int8],
    q: np.float32,
    y: npt.NDArray[np.float32],
    z: npt.NDArray[np.float32],
) -> bytes:
    """Return ``SHA-256(link || step || grid || q || SHA-256(y || z))``, numbers little-endian.

    Args:
        step: from 1, as u32.
        grid: [cells], a byte a cell.
        q: as binary32.
        y, z: the states after the step, C-contiguous binary32. [tokens, hidden]
    """
    state = hashlib.sha256(y.data)
    state.update(z.data)
    return hashlib.sha256(
        link + _STEP.pack(step) + grid.tobytes() + q.tobytes() + state.digest()
    ).digest()


def folded(links: list[bytes]) -> str:
    """Return the digest of a solve, in hex, from the last link of each rollout."""
    return (links[0] if len(links) == 1 else hashlib.sha256(b"".join(links)).digest()).hex()
