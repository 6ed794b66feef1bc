"""The digest chain (arithmetic contract, rule 8): equal digests mean equal logits everywhere."""

from __future__ import annotations

import hashlib
import struct

_START = hashlib.sha256(b"detinfer-digest-1").digest()
_LINK = struct.Struct("<IQQ")


class DigestChain:
    """SHA-256 over a request's tokens and the checksums of the logits they were chosen from.

    ``h_0 = SHA-256("detinfer-digest-1")`` and ``h_t = SHA-256(h_{t-1} || token || sums)``, with the
    token as u32 and the two sums as u64, little-endian. The stop token is part of the chain.
    """

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = _START

    def update(self, token_id: int, sums: tuple[int, int]) -> None:
        """Add one generated token and the checksum of its whole row of raw logits."""
        link = _LINK.pack(token_id, sums[0], sums[1])
        self._state = hashlib.sha256(self._state + link).digest()

    def hexdigest(self) -> str:
        """Return the last link, in hex (64 characters)."""
        return self._state.hex()
