"""What each engine is asked to do, which rows it makes, and what it takes at least."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.common import median, prompt_ids
from benchmarks.peers.engine import Peer
from benchmarks.roofline import Model, Work

# The others would take minutes, or need other settings.
LONG = ("detinfer packed", "openvino")


class Phase(NamedTuple):
    """``batch`` prompts, and ``decode`` tokens more after the first of each.

    Attributes:
        prefill: the row of the prompts' rate, if that is told.
        decoded: the row of the rate of the tokens after the first, if there are any.
        engines: which take part; all if None.
    """

    prefill: str | None
    decoded: str | None
    batch: int
    prompt: int
    decode: int = 0
    engines: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The phase's, by which it is chosen."""
        return self.decoded or self.prefill or ""

    @property
    def context(self) -> float:
        """Tokens that those after the first see, on average."""
        return self.prompt + (1 + self.decode) / 2

    def takes(self, engine: str) -> bool:
        """Return whether an engine takes part."""
        return self.engines is None or engine in self.engines

    def measure(self, peer: Peer) -> tuple[tuple[float, float], str]:
        """Return a round: seconds to the first tokens and to the last, and one digest (or "")."""
        prompts = [prompt_ids(self.prompt, seed) for seed in range(self.batch)]
        told = [peer.generate(prompts, 1)]
        if self.decode:
            told.append(peer.generate(prompts, 1 + self.decode))
        digests = "".join(digest for one in told for digest in one.get("digests", ()))
        digest = digests and hashlib.sha256(digests.encode()).hexdigest()
        return (told[0]["seconds"], told[-1]["seconds"]), digest

    def rates(self, rounds: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
        """Return each row's tokens a second, round by round."""
        rates = {}
        if self.prefill:
            rates[self.prefill] = [self.batch * self.prompt / first for first, _ in rounds]
        if self.decoded:
            # What disturbs one of two calls must not be taken for what the second took longer.
            prompts = median([first for first, _ in rounds])
            rates[self.decoded] = [
                self.batch * self.decode / (last - prompts) for _, last in rounds
            ]
        return rates

    def work(self, model: Model, step: int) -> dict[str, tuple[int, Work]]:
        """Return tokens and least work of each row: the prompts in steps of ``step``, or a step."""
        made = {}
        if self.prefill:
            work = model.prefill(self.batch, self.prompt, step)
            made[self.prefill] = (self.batch * self.prompt, work)
        if self.decoded:
            made[self.decoded] = (self.batch, model.decode(self.batch, self.context))
        return made


NEAR = Phase(None, "decode, batch 1", 1, 64, 64)
FAR = Phase("prefill, 4,096 tokens", "decode, context 4,096", 1, 4096, 128, LONG)
PHASES = [
    NEAR,
    Phase(None, "decode, batch 8", 8, 64, 64),
    Phase("prefill, 32 x 64 tokens", "decode, batch 32", 32, 64, 32),
    Phase("prefill, 512 tokens", None, 1, 512),
    FAR,
    Phase("prefill, 7,680 tokens", None, 1, 7680, 0, LONG),
]
