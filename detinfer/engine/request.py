"""One request's life: waiting, running, finished."""

from __future__ import annotations

import enum
import secrets
from dataclasses import dataclass, field

import numpy as np

from detinfer.digest import DigestChain
from detinfer.engine.batch import IntArray
from detinfer.engine.detokenizer import Detokenizer, StopStrings
from detinfer.params import SamplingParams
from detinfer.sampling import is_greedy


class RequestState(enum.Enum):
    """Where a request is; it only moves forward."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """What the engine keeps of a request.

    Attributes:
        arrival: its place in the order of arrival, the only order that scheduling knows.
        token_ids: prompt, then output.
        max_tokens: ``params.max_tokens``, or what the model's length leaves.
        seed: key of the noise; drawn if none was given and noise is needed.
        stop_ids: token ids that end the output.
        num_computed: tokens whose keys and values are in the cache.
        block_table: its pages, in order of position; empty while it waits.
    """

    request_id: str
    arrival: int
    token_ids: list[int]
    prompt_tokens: int
    params: SamplingParams
    max_tokens: int
    seed: int | None
    stop_ids: frozenset[int]
    detokenizer: Detokenizer
    stop_strings: StopStrings
    state: RequestState = RequestState.WAITING
    num_computed: int = 0
    block_table: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    digest: DigestChain = field(default_factory=DigestChain)

    @property
    def completion_tokens(self) -> int:
        """Output tokens so far."""
        return len(self.token_ids) - self.prompt_tokens

    @property
    def pending_tokens(self) -> int:
        """Tokens not yet in the cache: the rest of the prompt, or the one last chosen."""
        return len(self.token_ids) - self.num_computed

    @property
    def decoding(self) -> bool:
        """Whether the next step feeds its last output token alone."""
        return self.pending_tokens == 1 and self.num_computed >= self.prompt_tokens

    @property
    def longest(self) -> int:
        """Tokens it can come to hold."""
        return self.prompt_tokens + self.max_tokens


def noise_seed(params: SamplingParams) -> int | None:
    """The seed a request runs with: its own, or a drawn one if it needs noise and gave none."""
    if params.seed is None and not is_greedy(params):
        return secrets.randbits(64)
    return params.seed
