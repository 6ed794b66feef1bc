"""The engine: ``step()`` turns waiting requests into tokens."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from detinfer import ops, sampling
from detinfer.choices import noise_seed
from detinfer.config import PAGE_SIZE, EngineConfig
from detinfer.engine.batch import Batch
from detinfer.engine.block_manager import BlockManager
from detinfer.engine.detokenizer import Detokenizer, StopStrings, special_tokens, token_decoder
from detinfer.engine.outputs import EngineInfo, FinishReason, RequestOutput, TokenLogprob
from detinfer.engine.request import Request, RequestState
from detinfer.engine.scheduler import Limits, ScheduledRow, Scheduler, make_batch
from detinfer.engine.speculation import PromptLookup
from detinfer.engine.validation import check_request, stop_ids
from detinfer.errors import RequestError
from detinfer.params import SamplingParams

if TYPE_CHECKING:
    from detinfer.fingerprint import Fingerprint

logger = logging.getLogger(__name__)

NON_FINITE = "the model's logits became NaN or infinite for this request"

# Tokens a step may come to through drafts: the rows of one tile, which cost little more than one
# row as the weights are read once for all of them. Six on a CPU, sixteen on a tensor core.
MAX_WITH_DRAFTS = {"portable": 6, "native": 16}


class _Choice(NamedTuple):
    """The token chosen from a row of logits (-1: none could be), and what is said of the row."""

    token: int
    sums: tuple[int, int]
    logprob: TokenLogprob | None


@dataclass
class _Increment:
    """What a step adds to a request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str = ""


class Runner(Protocol):
    """What the engine needs of a model runner (``ModelRunner``, or a fake in tests)."""

    vocab_size: int
    max_model_len: int
    num_pages: int
    eos_token_ids: frozenset[int]
    tokenizer: Any
    model_name: str
    plan: str
    dtype: Any
    fingerprint: Fingerprint
    profile: ops.Profile

    def forward(self, batch: Batch) -> Tensor:
        """Logits of ``batch.logit_rows``, valid until the next call. [L, V] float32."""


class Engine:
    """Continuous batching over one model, in the caller's process and thread.

    What a request gets is a pure function of the model, its prompt and its own parameters: the
    engine shows the model nothing of a request but its tokens, positions and pages.

    Args:
        config: settings; the runner is made from it unless one is given.
    """

    def __init__(self, config: EngineConfig, runner: Runner | None = None) -> None:
        config = config.resolve()
        if runner is None:
            runner = _make_runner(config)
        self.runner: Runner = runner
        self.tokenizer = runner.tokenizer
        self.info = _describe(runner, config)
        self.block_manager = BlockManager(runner.num_pages)
        assert config.max_num_seqs is not None
        assert config.max_num_batched_tokens is not None
        self.scheduler = Scheduler(
            self.block_manager,
            Limits(
                config.max_num_seqs,
                config.max_num_batched_tokens,
                max_with_drafts=MAX_WITH_DRAFTS[runner.profile.name],
            ),
            config.prefix_caching,
        )
        self._decode = token_decoder(self.tokenizer)
        self._special = special_tokens(self.tokenizer)
        self._requests: dict[str, Request] = {}  # unfinished ones, in order of arrival
        self._arrivals = 0
        self._steps = [0, 0]  # fast, deterministic
        self._step_tokens = 0  # of the last step
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._drafted_tokens = 0
        self._accepted_tokens = 0
        self._speculation = config.speculation

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        cache_salt: str = "",
    ) -> None:
        """Queues a request.

        Args:
            request_id: unique among the unfinished ones.
            prompt_token_ids: the prompt.
            params: how to sample and when to end; one choice (``detinfer.choices`` makes them).
            cache_salt: the prefix cache shares pages only among requests of the same salt.

        Raises:
            RequestError: if it cannot be served as asked, or its id is in use.
        """
        if request_id in self._requests:
            raise RequestError(f"request_id: {request_id!r} is in use", "request_id")
        max_tokens = check_request(prompt_token_ids, params, self.info)
        request = Request(
            request_id=request_id,
            arrival=self._arrivals,
            token_ids=[int(token) for token in prompt_token_ids],
            prompt_tokens=len(prompt_token_ids),
            params=params,
            max_tokens=max_tokens,
            seed=noise_seed(params),
            stop_ids=stop_ids(params, self.info),
            detokenizer=Detokenizer(self._decode, prompt_token_ids, self._special),
            stop_strings=StopStrings(params.stop),
            cache_salt=cache_salt,
            lookup=PromptLookup() if self._speculation else None,
        )
        self._arrivals += 1
        self._requests[request_id] = request
        self.scheduler.add(request)

    def abort(self, request_id: str, reason: str | None = None) -> RequestOutput | None:
        """Ends a request and frees its pages at once; unknown and finished ones are ignored.

        Args:
            request_id: whom to end.
            reason: why, when it is not the client's own wish.

        Returns:
            Its last increment, for whoever still wants it; None if there was no such request.
        """
        request = self._requests.get(request_id)
        return None if request is None else self._end(request, "abort", error=reason)

    def abort_all(self, reason: str) -> list[RequestOutput]:
        """Ends every request; returns their last increments."""
        return [
            self._end(request, "abort", error=reason) for request in list(self._requests.values())
        ]

    def has_unfinished(self) -> bool:
        """Whether a step has work to do."""
        return bool(self._requests)

    def step(self) -> list[RequestOutput]:
        """Runs the model once; returns the increments of the requests that got a token or ended.

        A failure in the model ends the requests of this step with an error, and no others.
        """
        rows = self.scheduler.schedule()
        self._step_tokens = sum(row.num_tokens + len(row.draft) for row in rows)
        if not rows:
            return []
        deterministic = any(row.request.params.deterministic for row in rows)
        self._steps[deterministic] += 1
        try:
            chosen = self._run(rows)
        except Exception as error:
            return [self._fail(row.request, error) for row in rows]
        ended = [
            self._end(request, "error", cut=True, error=NON_FINITE)
            for request in {row.request: None for row in rows if row.scored}
            if not all(map(_is_finite, request.prompt_logprobs))
        ]
        return ended + [
            self._extend(row.request, row.draft, choices)
            for row, choices in chosen
            if row.request.state is not RequestState.FINISHED
        ]

    def stats(self) -> dict[str, int]:
        """Counts of requests, pages, steps and tokens, as of now or since the start."""
        return {
            "running": len(self.scheduler.running),
            "waiting": len(self.scheduler.waiting),
            "num_pages": self.block_manager.num_pages,
            "free_pages": self.block_manager.num_free,
            "steps": sum(self._steps),
            "deterministic_steps": self._steps[True],
            "fast_steps": self._steps[False],
            "step_tokens": self._step_tokens,
            "preemptions": self.scheduler.preemptions,
            "prefix_hits": self.scheduler.prefix_hits,
            "prefix_queries": self.scheduler.prefix_queries,
            "prefix_hit_tokens": self.scheduler.prefix_hits * PAGE_SIZE,
            "evictions": self.block_manager.evictions,
            "prompt_tokens": self._prompt_tokens,
            "generated_tokens": self._generated_tokens,
            "drafted_tokens": self._drafted_tokens,
            "accepted_tokens": self._accepted_tokens,
        }

    def check_integrity(self) -> None:
        """Accounts for every page and every request.

        Raises:
            RuntimeError: with the numbers, if they do not add up.
        """
        self.block_manager.check_integrity()
        running, waiting = self.scheduler.running, self.scheduler.waiting
        known = [*running, *waiting]
        arrivals = [request.arrival for request in known]
        if (
            self.block_manager.owners() != [request.request_id for request in running]
            or known != list(self._requests.values())
            or arrivals != sorted(arrivals)
        ):
            raise RuntimeError(
                f"requests do not add up: {len(self.block_manager.owners())} own pages, "
                f"{len(running)} run, {len(waiting)} wait, {len(self._requests)} are known; "
                f"order of arrival {arrivals[:8]}"
            )

    def _run(self, rows: list[ScheduledRow]) -> list[tuple[ScheduledRow, list[_Choice]]]:
        """One forward pass; the rows that choose tokens, and a choice for each token of a draft."""
        with ops.use(self.runner.profile):
            logits = self._score_prompts(rows, self.runner.forward(make_batch(rows)))
            for row in rows:
                self._count_computed(row.request, row.num_tokens)
            choosing = [row for row in rows if not row.request.pending_tokens]
            if not choosing:
                return []
            return list(zip(choosing, self._choose(logits, choosing), strict=True))

    def _score_prompts(self, rows: list[ScheduledRow], logits: Tensor) -> Tensor:
        """Keeps the log-probabilities of prompts; the logits that tokens are chosen from."""
        if not any(row.scored for row in rows):
            return logits
        choosing: list[int] = []
        start = 0
        for request, count, draft, scored in rows:
            tokens = [request.token_ids[position + 1] for position in scored]
            counts = [request.params.prompt_logprobs] * len(tokens)
            found = sampling.token_logprobs(logits[start : start + len(tokens)], tokens, counts)
            request.prompt_logprobs += [one for one in found if one is not None]
            start += len(tokens)
            if request.num_computed + count == len(request.token_ids):
                choosing += range(start, start + len(draft) + 1)
                start += len(draft) + 1
        return logits[choosing]

    def _count_computed(self, request: Request, count: int) -> None:
        before = request.num_computed
        request.num_computed += count
        self.scheduler.name_pages(request)
        self._prompt_tokens += max(0, min(request.num_computed, request.prompt_tokens) - before)

    def _choose(self, logits: Tensor, rows: list[ScheduledRow]) -> Iterator[list[_Choice]]:
        sampling_rows, counts = [], []
        for request, _, draft, _ in rows:
            # A draft's tokens are judged as if those before them had been chosen.
            sampling_rows += [_sampling_row(request, draft[:i]) for i in range(len(draft) + 1)]
            counts += [request.params.logprobs] * (len(draft) + 1)
        tokens, sums = sampling.choose(logits, sampling_rows)
        logprobs = sampling.token_logprobs(logits, tokens, counts)
        choices = map(_Choice, tokens, sums, logprobs)
        for row in rows:
            yield list(itertools.islice(choices, len(row.draft) + 1))

    def _extend(
        self, request: Request, draft: Sequence[int], choices: list[_Choice]
    ) -> RequestOutput:
        """Takes the chosen tokens: all that a draft guessed right, and the one after them."""
        right = itertools.takewhile(
            lambda pair: pair[0] == pair[1].token, zip(draft, choices, strict=False)
        )
        accepted = sum(1 for _ in right)
        if draft and request.lookup is not None:
            request.lookup.judge(len(draft), accepted)
            self._drafted_tokens += len(draft)
            self._accepted_tokens += accepted
        new = _Increment()
        try:
            for i, choice in enumerate(choices[: accepted + 1]):
                ended = self._take(request, choice, new)
                if ended is not None:
                    return ended
                if i < accepted:  # its keys and values are in the cache already
                    self._count_computed(request, 1)
        except Exception as error:
            return self._fail(request, error)
        return _output(request, new)

    def _take(self, request: Request, choice: _Choice, new: _Increment) -> RequestOutput | None:
        """Adds one token to a request and to ``new``; its last increment if that ends it."""
        token = choice.token
        if token < 0:
            return self._end(request, "error", new, cut=True, error=NON_FINITE)
        request.token_ids.append(token)
        request.digest.update(token, choice.sums)
        self._generated_tokens += 1
        new.token_ids.append(token)
        if choice.logprob is not None:
            new.logprobs.append(choice.logprob)
        if token in request.stop_ids:
            return self._end(request, "stop", new)
        text, stopped = request.detokenizer.push(token), False
        if request.completion_tokens > request.params.min_tokens:
            text, stopped = request.stop_strings.push(text, self._special.get(token, ""))
        new.text += text
        if stopped:
            return self._end(request, "stop", new, cut=True)
        if request.completion_tokens == request.max_tokens:
            return self._end(request, "length", new)
        return None

    def _fail(self, request: Request, error: Exception) -> RequestOutput:
        logger.error("request %s failed", request.request_id, exc_info=error)
        message = f"the step failed: {type(error).__name__}: {error}"
        return self._end(request, "error", cut=True, error=message)

    def _end(
        self,
        request: Request,
        reason: FinishReason,
        new: _Increment | None = None,
        *,
        cut: bool = False,
        error: str | None = None,
    ) -> RequestOutput:
        """Finishes a request; text that was held back goes out unless it is cut off."""
        new = new or _Increment()
        if not cut:
            tail, found = request.stop_strings.push(request.detokenizer.finish())
            if not found:
                tail += request.stop_strings.finish()
            elif reason == "length":
                reason = "stop"  # what could have been the beginning of a character was the stop
            new.text += tail
        self.scheduler.finish(request)
        del self._requests[request.request_id]
        output = _output(request, new)
        output.finish_reason = reason
        output.digest = request.digest.hexdigest()
        output.error = error
        return output


def _make_runner(config: EngineConfig) -> Runner:
    if config.numerics == "native" or config.device == "cuda":
        from detinfer.engine.native_runner import NativeRunner

        return NativeRunner(config)
    from detinfer.engine.model_runner import ModelRunner

    return ModelRunner(config)


def _describe(runner: Runner, config: EngineConfig) -> EngineInfo:
    assert config.max_num_seqs is not None
    parts = dict(runner.fingerprint.parts)
    return EngineInfo(
        model_name=runner.model_name,
        max_model_len=runner.max_model_len,
        vocab_size=runner.vocab_size,
        eos_token_ids=tuple(sorted(runner.eos_token_ids)),
        num_pages=runner.num_pages,
        max_num_seqs=config.max_num_seqs,
        allow_fast=config.allow_fast,
        plan=runner.plan,
        dtype=str(runner.dtype).removeprefix("torch."),
        numerics=parts.get("profile", "portable"),
        fingerprint=parts,
        system_fingerprint=runner.fingerprint.system_fingerprint,
    )


def _is_finite(one: TokenLogprob) -> bool:
    return all(math.isfinite(logprob) for logprob in (one.logprob, *(p for _, p in one.top[-1:])))


def _sampling_row(request: Request, guessed: Sequence[int]) -> sampling.SamplingRow:
    """How the token after a request's own and ``guessed`` ones is sampled."""
    masked = request.completion_tokens + len(guessed) < request.params.min_tokens
    token_ids = [*request.token_ids, *guessed] if guessed else request.token_ids
    return sampling.SamplingRow(
        params=request.params,
        seed=request.seed or 0,
        position=len(token_ids),
        masked=np.array(sorted(request.stop_ids) if masked else [], dtype=np.int64),
        token_ids=token_ids,
        prompt_tokens=request.prompt_tokens,
    )


def _output(request: Request, new: _Increment) -> RequestOutput:
    is_first = bool(new.token_ids) and len(new.token_ids) == request.completion_tokens
    scored = request.params.prompt_logprobs is not None and is_first
    return RequestOutput(
        request_id=request.request_id,
        text=new.text,
        token_ids=list(new.token_ids),
        logprobs=None if request.params.logprobs is None else list(new.logprobs),
        finish_reason=None,
        digest=None,
        seed=request.seed,
        deterministic=request.params.deterministic,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=request.completion_tokens,
        cached_tokens=request.cached_tokens or 0,
        queue_time=(request.started or time.monotonic()) - request.arrived,
        prompt_logprobs=request.prompt_logprobs if scored else None,
    )
