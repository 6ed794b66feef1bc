"""How alike two prompts are: the inner product of their vectors (arithmetic contract, rule 10)."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detinfer.engine.embedding import Embedding
from detinfer.errors import RequestError

LANES = 64

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """How alike two prompts are.

    Attributes:
        score: a binary32, near 1 where they are alike; NaN if ``error`` says why there is none.
        digest: SHA-256 of both vectors' numbers and the score, binary32, little-endian.
    """

    score: float
    digest: str
    deterministic: bool
    system_fingerprint: str
    error: str | None = None

    @classmethod
    def of(cls, first: Embedding, second: Embedding) -> Score:
        """Return the score of two vectors of length 1, of one model and one mode."""
        about = (first.deterministic, first.system_fingerprint)
        if (error := first.error or second.error) is not None:
            return cls(math.nan, "", *about, error)
        [(score, digest)] = scores(first.vector[None], second.vector[None])
        return cls(score, digest, *about)


def scores(first: Floats, second: Floats) -> list[tuple[float, str]]:
    """Return each pair's score, a binary32, and its digest. [1 or N, D], [N, D]."""
    first = np.broadcast_to(first, second.shape)
    products = inner_products(first, second)
    digests = [
        hashlib.sha256(b"".join(part.astype("<f4").tobytes() for part in parts)).hexdigest()
        for parts in zip(first, second, products, strict=True)
    ]
    return list(zip(products.tolist(), digests, strict=True))


def inner_products(first: Floats, second: Floats) -> Floats:
    """Return the 64-lane sum of each pair's products. [N, D], [N, D] -> [N]."""
    products = first * second
    lanes = np.zeros((len(products), LANES), np.float32)
    for start in range(0, products.shape[1], LANES):
        part = products[:, start : start + LANES]
        lanes[:, : part.shape[1]] += part
    while lanes.shape[1] > 1:  # not np.sum, whose order is NumPy's own
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def check_pairs(names: tuple[str, str], first: int, second: int) -> None:
    """Refuse numbers of prompts that make no pairs: one and N do, and N and N.

    Args:
        names: of both, as the user knows them.

    Raises:
        RequestError: naming one of them.
    """
    for name, count in zip(names, (first, second), strict=True):
        if not count:
            raise RequestError(f"{name}: got none, expected at least one", name)
    if first not in (1, second):
        raise RequestError(
            f"{names[1]}: got {second} for {first} of {names[0]}, expected as many", names[1]
        )
