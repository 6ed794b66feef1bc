"""The engine's face: requests in, ``step()``, increments out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from detinfer.config import EngineConfig
from detinfer.engine.block_manager import BlockManager
from detinfer.engine.compiling import Compiling, settled
from detinfer.engine.constraint import Constraint
from detinfer.engine.detokenizer import Detokenizer, StopStrings, special_tokens, token_decoder
from detinfer.engine.grammars import GrammarCompiler
from detinfer.engine.increments import failure_of, output_of
from detinfer.engine.outcome import Increment
from detinfer.engine.outputs import RequestOutput, describe
from detinfer.engine.pooling import Pool
from detinfer.engine.request import Request
from detinfer.engine.scheduler import Limits, Scheduler
from detinfer.engine.speculation import Constrained, Drafts, PromptLookup, Replay
from detinfer.engine.step import Stepper
from detinfer.engine.validation import check_ids, check_pooling, check_request, stop_ids
from detinfer.errors import RequestError
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.machine import check_logits, check_pool
from detinfer.params import PoolingParams, SamplingParams, noise_seed
from detinfer.rounding import contract_rounding
from detinfer.runner import make_runner
from detinfer.runner.compile_progress import compile_progress
from detinfer.runner.runner import Runner
from detinfer.sampling import prepare

# Tokens a step may come to through drafts: the rows of one tile, which cost little more than one
# row as the weights are read once for all of them. Six on a CPU, sixteen on a tensor core.
MAX_WITH_DRAFTS = {"portable": 6, "native": 16}

COMPILING = 0.02  # seconds that a step waits for a grammar, if there is nothing else to do


class Engine:
    """Continuous batching over one model, in the caller's process and thread.

    What a request gets is a pure function of the model, its prompt and its own parameters: the
    engine shows the model nothing of a request but its tokens, positions and pages.

    Args:
        config: settings; the runner is made from it unless one is given.

    Attributes:
        refused: requests whose grammars the last step found not to compile, and why.
    """

    @compile_progress()
    @contract_rounding()
    def __init__(self, config: EngineConfig, runner: Runner | None = None) -> None:
        resolved = config.resolve()
        if runner is None:
            check_pool(resolved)
            runner = make_runner(resolved)
            check_logits(resolved, runner.vocab_size)
            prepare(runner.profile)
        self.runner: Runner = runner
        self.tokenizer = runner.tokenizer
        self.info = describe(runner, resolved)
        self.block_manager = BlockManager(runner.num_pages)
        self.scheduler = Scheduler(
            self.block_manager,
            Limits(
                resolved.max_num_seqs,
                resolved.max_num_batched_tokens,
                max_with_drafts=MAX_WITH_DRAFTS[runner.profile.name],
            ),
            resolved.prefix_caching,
        )
        self._decode = token_decoder(self.tokenizer)
        self._special = special_tokens(self.tokenizer)
        self._requests: dict[str, Request] = {}  # unfinished ones, in order of arrival
        self._grammars = GrammarCompiler(self.tokenizer, self.info)
        self._compiling = Compiling()
        self.refused: list[tuple[str, RequestError]] = []
        self._stepper = Stepper(runner, self.scheduler, self._requests)
        self._arrivals = 0
        self._speculation = resolved.speculation

    def prepare(self) -> None:
        """Do what the first request with a grammar would let others wait for."""
        self._grammars.prepare()

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams | PoolingParams,
        cache_salt: str = "",
        answer: Sequence[int] = (),
        wait: bool = True,
    ) -> None:
        """Queue a request.

        Args:
            request_id: unique among the unfinished ones.
            prompt_token_ids: the prompt.
            params: how to sample and when to end; one choice (``detinfer.params`` makes them). Or
                how to pool: then the one output has a vector and no text.
            cache_salt: the prefix cache shares pages only among requests of the same salt.
            answer: what its output is expected to be, which then takes few steps to find out.
            wait: for its grammar, if it has one. Else a later step finds out whether it compiles,
                and tells by ``refused`` if it does not.

        Raises:
            RequestError: if it cannot be served as asked, or its id is in use.
        """
        if request_id in self._requests or request_id in self._compiling:
            raise RequestError(f"request_id: {request_id!r} is in use", "request_id")
        pool = None
        if isinstance(params, PoolingParams):
            check_pooling(prompt_token_ids, params, self.info)
            pool = Pool(params, len(prompt_token_ids))
            # What is left to the rest of the engine: a request that ends before its first token.
            params, max_tokens = SamplingParams(1, deterministic=params.deterministic), 1
        else:
            max_tokens = check_request(prompt_token_ids, params, self.info)
        left_out = self._special if params.skip_special_tokens else {}
        drafts: Drafts | None = PromptLookup() if self._speculation else None
        if answer:
            check_ids("answer", answer, self.info)
            # The last token it may come to is never fed to the model.
            drafts = Replay(len(prompt_token_ids), answer[: max_tokens - 1])
        request = Request(
            request_id=request_id,
            arrival=0,
            token_ids=[int(token) for token in prompt_token_ids],
            prompt_tokens=len(prompt_token_ids),
            params=params,
            max_tokens=max_tokens,
            seed=noise_seed(params),
            stop_ids=stop_ids(params, self.info),
            left_out=left_out,
            detokenizer=Detokenizer(self._decode, prompt_token_ids, left_out),
            stop_strings=StopStrings(params.stop, params.include_stop_str_in_output),
            cache_salt=cache_salt,
            drafts=drafts,
            pool=pool,
        )
        compiling = self._grammars.start(params)
        if compiling is None:
            self._enter(request)
        elif not wait:
            self._compiling.add(request, compiling)
        else:
            found = settled(compiling)
            if isinstance(found, RequestError):
                raise found
            self._enter(request, found)

    @property
    def started(self) -> list[str]:
        """Ids of the requests that the last step ran for the first time."""
        return self.scheduler.started

    def abort(self, request_id: str, reason: str | None = None) -> RequestOutput | None:
        """End a request and free its pages at once; unknown and finished ones are ignored.

        Args:
            request_id: whom to end.
            reason: why, when it is not the client's own wish.

        Returns:
            Its last increment, for whoever still wants it; None if there was no such request.
        """
        new = Increment(error=reason)
        compiling = self._compiling.remove(request_id)
        if compiling is not None:
            compiling.end("abort", new)
            return output_of(compiling, new)
        request = self._requests.get(request_id)
        if request is None:
            return None
        try:
            request.end("abort", new)
            return self._stepper.tell(request, new)
        except Exception as error:
            self.discard([request_id])
            return failure_of(request, error)

    def abort_all(self, reason: str) -> list[RequestOutput]:
        """End every request and return their last increments."""
        ended = [
            self.abort(request_id, reason) for request_id in [*self._requests, *self._compiling]
        ]
        return [output for output in ended if output is not None]

    def has_unfinished(self) -> bool:
        """Return whether a step has work to do."""
        return bool(self._requests or self._compiling)

    @contract_rounding()
    def step(self) -> list[RequestOutput]:
        """Run the model once and return the increments of the requests that got a token or ended.

        Whatever raises for one request ends that request with an error, and no other. What is
        nobody's in particular, such as a failure in the model, ends all of the step. If the step
        itself is interrupted (Ctrl-C) every request is ended, and the engine can be used again.
        """
        try:
            self._enter_compiled()
            return self._stepper.step()
        except BaseException:
            self.discard([*self._requests, *self._compiling])  # no one can tell what was half done
            raise

    def discard(self, request_ids: Iterable[str]) -> None:
        """Take requests out, whatever was done to them by halves; unknown ones are ignored.

        What the engine keeps of the others, and of its pages, is made anew from themselves. Once
        more does no harm, so that an interrupted call can be made again.
        """
        request_ids = list(request_ids)
        for request_id in request_ids:
            self._compiling.remove(request_id)
        self._stepper.discard(request_ids)

    def stats(self) -> dict[str, int]:
        """Count of requests, pages, steps and tokens, as of now or since the start."""
        counts = self._stepper.counts
        return {
            "running": len(self.scheduler.running),
            "waiting": len(self.scheduler.waiting) + len(self._compiling),
            "num_pages": self.block_manager.num_pages,
            "free_pages": self.block_manager.num_free,
            "steps": counts.deterministic_steps + counts.fast_steps,
            "deterministic_steps": counts.deterministic_steps,
            "fast_steps": counts.fast_steps,
            "step_tokens": counts.step_tokens,
            "preemptions": self.scheduler.preemptions,
            "prefix_hits": self.scheduler.prefix_hits,
            "prefix_queries": self.scheduler.prefix_queries,
            "prefix_hit_tokens": self.scheduler.prefix_hits * PAGE_SIZE,
            "evictions": self.block_manager.evictions,
            "prompt_tokens": counts.prompt_tokens,
            "generated_tokens": counts.generated_tokens,
            "drafted_tokens": counts.drafted_tokens,
            "accepted_tokens": counts.accepted_tokens,
        }

    def check_integrity(self) -> None:
        """Account for every page and every request.

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
            or any(request_id in self._requests for request_id in self._compiling)
        ):
            raise RuntimeError(
                f"requests do not add up: {len(self.block_manager.owners())} own pages, "
                f"{len(running)} run, {len(waiting)} wait, {len(self._requests)} are known; "
                f"order of arrival {arrivals[:8]}"
            )

    def _enter(self, request: Request, constraint: Constraint | None = None) -> None:
        """Let a request wait for its first step."""
        request.arrival, request.constraint = self._arrivals, constraint
        if constraint is not None and isinstance(request.drafts, PromptLookup):
            request.drafts = Constrained(constraint, request.drafts)
        self._arrivals += 1
        try:
            self._requests[request.request_id] = request
            self.scheduler.add(request)
        except BaseException:
            self.discard([request.request_id])
            raise

    def _enter_compiled(self) -> None:
        """Let those enter whose grammars are there, and refuse those whose cannot be."""
        self.refused.clear()
        if not self._compiling:
            return
        for request, found in self._compiling.done(0 if self._requests else COMPILING):
            if isinstance(found, RequestError):
                self.refused.append((request.request_id, found))
            else:
                self._enter(request, found)
