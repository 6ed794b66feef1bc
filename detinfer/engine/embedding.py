"""What a prompt's embedding is handed back as."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detinfer.engine.outputs import FinishReason, RequestOutput


@dataclass
class Embedding:
    """One prompt's vector.

    Attributes:
        vector: its numbers; empty if ``error`` says why there are none. [D]
        digest: SHA-256 of them, binary32, little-endian.
    """

    prompt_token_ids: list[int]
    deterministic: bool
    system_fingerprint: str
    vector: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    finish_reason: FinishReason | None = None
    digest: str = ""
    error: str | None = None

    def add(self, output: RequestOutput) -> None:
        """Take the request's only output."""
        self.vector = np.frombuffer(output.embedding or b"", "<f4")
        self.finish_reason = output.finish_reason
        self.digest = output.digest or ""
        self.error = output.error
