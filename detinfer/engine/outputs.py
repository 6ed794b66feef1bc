"""What an engine hands back, and what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from detinfer.config import ResolvedConfig, longest_sequence
from detinfer.logprobs import TokenLogprob

if TYPE_CHECKING:
    from detinfer.runner.runner import Runner

FinishReason = Literal["stop", "length", "abort", "error"]
Wire = tuple[Any, ...]


@dataclass(slots=True)
class RequestOutput:
    """One increment of one request: ``text``, ``token_ids`` and ``logprobs`` are what is new.

    Attributes:
        logprobs: one entry per new token; None if the request did not ask.
        prompt_logprobs: one entry per token of the prompt but the first, beside the first token of
            the answer; else None.
        finish_reason: None until the last increment.
        digest: the digest chain over all output tokens; only in the last increment.
        seed: the key of the noise in use, drawn if the request gave none; None for greedy.
        completion_tokens: output tokens so far, this increment's included.
        queue_time: seconds from its arrival until it first ran, or ended.
        checksums: rule 8's two sums of the logits of each new token; None if the request did not
            ask.
        stop_reason: the stop string, or the token id, that a ``finish_reason`` of "stop" is due to.
        embedding: the numbers of a request for a vector, binary32, little-endian; ``digest`` then
            is their SHA-256.
        error: why ``finish_reason`` is "error", or "abort" when the engine decided it.
    """

    request_id: str
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason | None
    digest: str | None
    seed: int | None
    deterministic: bool
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    queue_time: float = field(default=0.0, compare=False)
    error: str | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    stop_reason: str | int | None = None
    checksums: list[tuple[int, int]] | None = None
    embedding: bytes | None = None

    def to_wire(self) -> Wire:
        """Return the fields as a plain tuple, several times cheaper to pickle than the object."""
        wire: Wire = _fields(self)
        return wire


_fields = attrgetter(*RequestOutput.__slots__)


@dataclass
class Completion:
    """One whole answer.

    Attributes:
        text: without stop token and stop string; ``token_ids`` and ``digest`` include the token.
        logprobs: one entry per output token; None if not asked for.
        prompt_logprobs: one entry per token of the prompt but the first; None if not asked for.
        error: what went wrong when ``finish_reason`` is "error".
        checksums: rule 8's two sums of each output token's logits; None if not asked for.
    """

    prompt_token_ids: list[int]
    deterministic: bool
    system_fingerprint: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    digest: str = ""
    seed: int | None = None
    error: str | None = None
    checksums: list[tuple[int, int]] | None = None

    def add(self, output: RequestOutput) -> None:
        """Append an increment."""
        self.text += output.text
        self.token_ids += output.token_ids
        if output.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += output.logprobs
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        self.finish_reason = output.finish_reason
        self.digest = output.digest or ""
        self.seed = output.seed
        self.error = output.error
        if output.checksums is not None:
            self.checksums = self.checksums or []
            self.checksums += output.checksums


@dataclass(frozen=True)
class EngineInfo:
    """What the other side of the process boundary needs to know about a loaded engine.

    Attributes:
        hidden_size: numbers of an embedding.
        generation_defaults: sampling that generation_config.json suggests, which is not applied.
    """

    model_name: str
    max_model_len: int
    vocab_size: int
    hidden_size: int
    eos_token_ids: tuple[int, ...]
    num_pages: int
    max_num_seqs: int
    allow_fast: bool
    plan: str
    dtype: str
    kv_cache_dtype: str
    profile: str
    fingerprint: dict[str, str]
    system_fingerprint: str
    generation_defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its answer; what bounds an answer without ``max_tokens``."""
        return longest_sequence(self.max_model_len, self.num_pages)


def describe(runner: Runner, config: ResolvedConfig) -> EngineInfo:
    """Return what the other side of the process boundary is told of a loaded engine."""
    return EngineInfo(
        model_name=runner.model_name,
        max_model_len=runner.max_model_len,
        vocab_size=runner.vocab_size,
        hidden_size=runner.hidden_size,
        eos_token_ids=tuple(sorted(runner.eos_token_ids)),
        num_pages=runner.num_pages,
        max_num_seqs=config.max_num_seqs,
        allow_fast=config.allow_fast,
        plan=runner.plan,
        dtype=runner.dtype,
        kv_cache_dtype=runner.kv_cache_dtype,
        profile=runner.profile.name,
        fingerprint=dict(runner.fingerprint.parts),
        system_fingerprint=runner.fingerprint.system_fingerprint,
        generation_defaults=runner.generation_defaults,
    )
