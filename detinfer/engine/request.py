"""One request: what the engine keeps of it, and what a step's tokens do to it."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from detinfer.batch import IntArray
from detinfer.digest import DigestChain
from detinfer.engine.constraint import Constraint
from detinfer.engine.detokenizer import Detokenizer, StopStrings
from detinfer.engine.outcome import Choice, Increment, Outcome, accepted, is_number
from detinfer.engine.outputs import FinishReason
from detinfer.engine.prefix_cache import chain_key, page_tokens, root_key
from detinfer.engine.speculation import Drafts
from detinfer.logprobs import TokenLogprob
from detinfer.params import SamplingParams

if TYPE_CHECKING:  # it loads PyTorch
    from detinfer.engine.pooling import Floats, Pool

NON_FINITE = "the model's logits became NaN or infinite for this request"
NON_FINITE_STATES = "the model's hidden states became NaN or infinite for this request"


class RequestState(enum.Enum):
    """Where a request is; a running one may be sent back to wait when pages run out."""

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
        left_out: names of the special tokens that its text leaves out, by id.
        num_computed: tokens whose keys and values are in the cache.
        block_table: its pages, in order of position; empty while it waits.
        page_keys: chain keys of its full pages, as far as they were needed.
        cache_salt: whose pages it may share: those of requests of the same salt.
        named: pages whose names the prefix cache has been given.
        cached_tokens: tokens found in the prefix cache when it first ran.
        arrived: monotonic time, in seconds.
        started: when it first ran.
        prompt_logprobs: of the prompt's second token and on, as far as they are known.
        drafts: of its next tokens; None if there are to be none.
        constraint: what its next tokens may be, if it has a grammar.
        pool: its prompt's hidden states, if they are all that is wanted of it.
    """

    request_id: str
    arrival: int
    token_ids: list[int]
    prompt_tokens: int
    params: SamplingParams
    max_tokens: int
    seed: int | None
    stop_ids: frozenset[int]
    left_out: Mapping[int, str]
    detokenizer: Detokenizer
    stop_strings: StopStrings
    state: RequestState = RequestState.WAITING
    num_computed: int = 0
    block_table: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    page_keys: list[bytes] = field(default_factory=list)
    named: int = 0
    cached_tokens: int | None = None
    cache_salt: str = ""
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    drafts: Drafts | None = None
    constraint: Constraint | None = None
    pool: Pool | None = None
    digest: DigestChain = field(default_factory=DigestChain)

    @property
    def completion_tokens(self) -> int:
        """Output tokens so far."""
        return len(self.token_ids) - self.prompt_tokens

    @property
    def longest(self) -> int:
        """Tokens it can come to; the last of them is never fed to the model."""
        return self.prompt_tokens + self.max_tokens

    @property
    def pending_tokens(self) -> int:
        """Tokens not yet in the cache: the rest of the prompt, or the one last chosen."""
        return len(self.token_ids) - self.num_computed

    @property
    def decoding(self) -> bool:
        """Whether the next step feeds its last output token alone."""
        return self.pending_tokens == 1 and self.num_computed >= self.prompt_tokens

    @property
    def stop_reason(self) -> str | int | None:
        """The stop string or token id that its output has ended at."""
        last = self.token_ids[-1]
        return last if last in self.stop_ids else self.stop_strings.found

    def to_score(self, count: int) -> range:
        """Positions among the next ``count`` whose logits the prompt's log-probabilities need."""
        if self.params.prompt_logprobs is None:
            return range(0)
        known = len(self.prompt_logprobs)
        end = min(self.num_computed + count, self.prompt_tokens - 1)
        return range(max(self.num_computed, known), max(end, known))

    def to_pool(self, count: int) -> range:
        """Positions among the next ``count`` whose hidden states are wanted."""
        if self.pool is None:
            return range(0)
        return self.pool.wanted(self.num_computed, self.num_computed + count)

    def draft(self, most: int) -> Sequence[int]:
        """Guesses of its next tokens, at most ``most``; none that it could not go beyond."""
        room = min(most, self.longest - 1 - len(self.token_ids))
        if self.drafts is None or room < 1:
            return ()
        return self.drafts.propose(self.token_ids, room)

    def page_key(self, page: int) -> tuple[bytes, bytes, bytes]:
        """Chain key, parent's key and tokens of a full page."""
        root = root_key(self.params.deterministic, self.cache_salt)
        for i in range(len(self.page_keys), page + 1):
            parent = self.page_keys[i - 1] if i else root
            self.page_keys.append(chain_key(parent, page_tokens(self.token_ids, i)))
        parent = self.page_keys[page - 1] if page else root
        return self.page_keys[page], parent, page_tokens(self.token_ids, page)

    def advance(self, count: int, draft: Sequence[int], outcome: Outcome) -> Increment | None:
        """Take what a step has brought.

        Args:
            count: its tokens whose keys and values the step has written, the draft's not included.
            draft: guesses that the step has verified.
            outcome: what the step's logits say.

        Returns:
            What is new of its output; None if nothing is, as its prompt is not done.
        """
        self.num_computed += count
        self.prompt_logprobs += outcome.scores
        new = Increment()
        if not all(map(is_number, outcome.scores)):
            new.finish_reason, new.error = "error", NON_FINITE
            return new
        if not outcome.choices:
            return None
        if draft and self.drafts is not None:
            new.accepted = accepted(draft, outcome.choices)
            self.drafts.judge(len(draft), new.accepted)
        for choice in outcome.choices[: new.accepted + 1]:
            if new.token_ids:  # the last of them was guessed: it is in the cache already
                self.num_computed += 1
            self._take(choice, new)
            if new.finish_reason is not None:
                break
        return new

    def embed(self, count: int, states: Floats) -> Increment | None:
        """Take what a step has brought to a request for a vector.

        Args:
            count: its tokens whose keys and values the step has written.
            states: of the positions ``to_pool`` named.

        Returns:
            The vector; None if the prompt is not done.
        """
        assert self.pool is not None
        self.pool.add(states)
        self.num_computed += count
        if self.num_computed < self.prompt_tokens:
            return None
        vector = self.pool.vector()
        if not np.isfinite(vector).all():
            return Increment(finish_reason="error", error=NON_FINITE_STATES)
        return Increment(finish_reason="stop", embedding=vector.astype("<f4").tobytes())

    def end(self, reason: FinishReason, new: Increment) -> None:
        """End the output with ``new``, and with the text that was held back."""
        tail, found = self.stop_strings.push(self.detokenizer.finish())
        if not found:
            tail += self.stop_strings.finish()
        elif reason == "length":
            reason = "stop"  # what could have been the beginning of a character was the stop
        new.text += tail
        new.finish_reason = reason

    def _take(self, choice: Choice, new: Increment) -> None:
        """Add one token to the output and to ``new``, which may end with it."""
        token = choice.token
        if token < 0:
            failure = self.constraint and self.constraint.failure
            new.finish_reason, new.error = "error", failure or NON_FINITE
            return
        self.token_ids.append(token)
        self.digest.update(token, choice.sums)
        new.token_ids.append(token)
        new.checksums.append(choice.sums)
        if choice.logprob is not None:
            new.logprobs.append(choice.logprob)
        if token in self.stop_ids:
            if self.params.include_stop_str_in_output:
                new.text += self.stop_strings.push(self.detokenizer.push(token))[0]
            self.end("stop", new)
            return
        if self.constraint is not None:
            self.constraint.take(token)
            if self.constraint.failure:
                new.finish_reason, new.error = "error", self.constraint.failure
                return
        text, stopped = self.detokenizer.push(token), False
        if self.completion_tokens > self.params.min_tokens:
            text, stopped = self.stop_strings.push(text, self.left_out.get(token, ""))
        new.text += text
        if stopped:
            new.finish_reason = "stop"  # what is held back after a stop string is cut off
        elif self.constraint is not None and self.constraint.ended:
            self.end("stop", new)
        elif self.completion_tokens == self.max_tokens:
            self.end("length", new)
