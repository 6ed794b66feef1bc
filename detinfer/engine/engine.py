"""The engine: ``step()`` turns waiting requests into tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from detinfer import ops
from detinfer.batch import Batch
from detinfer.config import EngineConfig
from detinfer.engine.block_manager import BlockManager
from detinfer.engine.choosing import Choice, Outcome, accepted, is_number, read_logits
from detinfer.engine.detokenizer import Detokenizer, StopStrings, special_tokens, token_decoder
from detinfer.engine.increments import Increment, failure_of, output_of
from detinfer.engine.outputs import FinishReason, RequestOutput, describe
from detinfer.engine.request import Request, RequestState
from detinfer.engine.scheduler import Limits, ScheduledRow, Scheduler, make_batch
from detinfer.engine.speculation import PromptLookup
from detinfer.engine.validation import check_request, stop_ids
from detinfer.errors import RequestError
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.machine import check_logits, check_pool
from detinfer.params import SamplingParams, noise_seed
from detinfer.runner.compile_progress import compile_progress
from detinfer.runner.rounding import contract_rounding
from detinfer.runner.runner import Runner, make_runner
from detinfer.sampling import prepare

NON_FINITE = "the model's logits became NaN or infinite for this request"

# Tokens a step may come to through drafts: the rows of one tile, which cost little more than one
# row as the weights are read once for all of them. Six on a CPU, sixteen on a tensor core.
MAX_WITH_DRAFTS = {"portable": 6, "native": 16}


class Engine:
    """Continuous batching over one model, in the caller's process and thread.

    What a request gets is a pure function of the model, its prompt and its own parameters: the
    engine shows the model nothing of a request but its tokens, positions and pages.

    Args:
        config: settings; the runner is made from it unless one is given.
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
        self._arrivals = 0
        self._steps = [0, 0]  # fast, deterministic
        self._step_tokens = 0  # of the last step
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._drafted_tokens = 0
        self._accepted_tokens = 0
        self._speculation = resolved.speculation

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        cache_salt: str = "",
    ) -> None:
        """Queue a request.

        Args:
            request_id: unique among the unfinished ones.
            prompt_token_ids: the prompt.
            params: how to sample and when to end; one choice (``detinfer.params`` makes them).
            cache_salt: the prefix cache shares pages only among requests of the same salt.

        Raises:
            RequestError: if it cannot be served as asked, or its id is in use.
        """
        if request_id in self._requests:
            raise RequestError(f"request_id: {request_id!r} is in use", "request_id")
        max_tokens = check_request(prompt_token_ids, params, self.info)
        left_out = self._special if params.skip_special_tokens else {}
        request = Request(
            request_id=request_id,
            arrival=self._arrivals,
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
            lookup=PromptLookup() if self._speculation else None,
        )
        self._arrivals += 1
        try:
            self._requests[request_id] = request
            self.scheduler.add(request)
        except BaseException:
            self.discard([request_id])
            raise

    def abort(self, request_id: str, reason: str | None = None) -> RequestOutput | None:
        """End a request and frees its pages at once; unknown and finished ones are ignored.

        Args:
            request_id: whom to end.
            reason: why, when it is not the client's own wish.

        Returns:
            Its last increment, for whoever still wants it; None if there was no such request.
        """
        request = self._requests.get(request_id)
        if request is None:
            return None
        try:
            return self._end(request, "abort", error=reason)
        except Exception as error:
            self.discard([request_id])
            return failure_of(request, error)

    def abort_all(self, reason: str) -> list[RequestOutput]:
        """End every request; returns their last increments."""
        ended = [self.abort(request_id, reason) for request_id in list(self._requests)]
        return [output for output in ended if output is not None]

    def has_unfinished(self) -> bool:
        """Return whether a step has work to do."""
        return bool(self._requests)

    @contract_rounding()
    def step(self) -> list[RequestOutput]:
        """Run the model once; returns the increments of the requests that got a token or ended.

        Whatever raises for one request ends that request with an error, and no other. What is
        nobody's in particular, such as a failure in the model, ends all of the step. If the step
        itself is interrupted (Ctrl-C) every request is ended, and the engine can be used again.
        """
        try:
            return self._step()
        except BaseException:
            self.discard(list(self._requests))  # no one can tell what was half done
            raise

    def discard(self, request_ids: Iterable[str]) -> None:
        """Take requests out, whatever was done to them by halves; unknown ones are ignored.

        What the engine keeps of the others, and of its pages, is made anew from themselves. Once
        more does no harm, so that an interrupted call can be made again.
        """
        gone = [self._requests[name] for name in request_ids if name in self._requests]
        if not gone:
            return
        for request in gone:
            request.state = RequestState.FINISHED
        self.scheduler.rebuild(self._requests.values())
        for request in gone:
            del self._requests[request.request_id]

    def stats(self) -> dict[str, int]:
        """Count of requests, pages, steps and tokens, as of now or since the start."""
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
        ):
            raise RuntimeError(
                f"requests do not add up: {len(self.block_manager.owners())} own pages, "
                f"{len(running)} run, {len(waiting)} wait, {len(self._requests)} are known; "
                f"order of arrival {arrivals[:8]}"
            )

    def _step(self) -> list[RequestOutput]:
        failed: dict[Request, Exception] = {}
        self.scheduler.started.clear()
        batch, rows = _lay_out(self._schedule(failed), failed)
        self._step_tokens = 0 if batch is None else len(batch.input_ids)
        outputs = [] if batch is None else self._run(batch, rows, failed)
        self.discard(request.request_id for request in failed)
        return [failure_of(*one) for one in failed.items()] + outputs

    def _schedule(self, failed: dict[Request, Exception]) -> list[ScheduledRow]:
        """Return the next step's rows, laid out anew without whoever makes that fail."""
        while True:
            try:
                return self.scheduler.schedule()
            except Exception as error:
                if self.scheduler.current is None:
                    raise
                failed[self.scheduler.current] = error
                self.discard([self.scheduler.current.request_id])

    def _run(
        self, batch: Batch, rows: list[ScheduledRow], failed: dict[Request, Exception]
    ) -> list[RequestOutput]:
        """One forward pass, and what its rows make of it."""
        self._steps[batch.deterministic] += 1
        try:
            with ops.use(self.runner.profile):
                outcomes = read_logits(self.runner.forward(batch), batch, rows)
        except Exception as error:
            failed |= {row.request: error for row in rows}
            return []
        outputs = []
        for row, outcome in zip(rows, outcomes, strict=True):
            try:
                output = self._advance(row, outcome)
            except Exception as error:
                failed[row.request] = error
            else:
                outputs += [] if output is None else [output]
        return outputs

    def _advance(self, row: ScheduledRow, outcome: Outcome | Exception) -> RequestOutput | None:
        """Take what a step has brought a request; its increment, if there is one."""
        if isinstance(outcome, Exception):
            raise outcome
        request, choices = row.request, outcome.choices
        self._count_computed(request, row.num_tokens)
        request.prompt_logprobs += outcome.scores
        if not all(map(is_number, outcome.scores)):
            return self._end(request, "error", cut=True, error=NON_FINITE)
        if not choices:
            return None
        right = accepted(row.draft, choices)
        if row.draft and request.lookup is not None:
            request.lookup.judge(len(row.draft), right)
            self._drafted_tokens += len(row.draft)
            self._accepted_tokens += right
        new = Increment()
        for i, choice in enumerate(choices[: right + 1]):
            ended = self._take(request, choice, new)
            if ended is not None:
                return ended
            if i < right:  # its keys and values are in the cache already
                self._count_computed(request, 1)
        return output_of(request, new)

    def _count_computed(self, request: Request, count: int) -> None:
        before = request.num_computed
        request.num_computed += count
        self.scheduler.name_pages(request)
        self._prompt_tokens += max(0, min(request.num_computed, request.prompt_tokens) - before)

    def _take(self, request: Request, choice: Choice, new: Increment) -> RequestOutput | None:
        """Add one token to a request and to ``new``; its last increment if that ends it."""
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
            if request.params.include_stop_str_in_output:
                new.text += request.stop_strings.push(request.detokenizer.push(token))[0]
            return self._end(request, "stop", new)
        text, stopped = request.detokenizer.push(token), False
        if request.completion_tokens > request.params.min_tokens:
            text, stopped = request.stop_strings.push(text, request.left_out.get(token, ""))
        new.text += text
        if stopped:
            return self._end(request, "stop", new, cut=True)
        if request.completion_tokens == request.max_tokens:
            return self._end(request, "length", new)
        return None

    def _end(
        self,
        request: Request,
        reason: FinishReason,
        new: Increment | None = None,
        *,
        cut: bool = False,
        error: str | None = None,
    ) -> RequestOutput:
        """Finish a request; text that was held back goes out unless it is cut off."""
        new = new or Increment()
        if not cut:
            tail, found = request.stop_strings.push(request.detokenizer.finish())
            if not found:
                tail += request.stop_strings.finish()
            elif reason == "length":
                reason = "stop"  # what could have been the beginning of a character was the stop
            new.text += tail
        self.scheduler.finish(request)
        del self._requests[request.request_id]
        output = output_of(request, new)
        output.finish_reason = reason
        if reason == "stop":
            last = request.token_ids[-1]
            output.stop_reason = last if last in request.stop_ids else request.stop_strings.found
        output.digest = request.digest.hexdigest()
        output.error = error
        return output


def _lay_out(
    rows: list[ScheduledRow], failed: dict[Request, Exception]
) -> tuple[Batch | None, list[ScheduledRow]]:
    """Return the batch of a step's rows, and which they are: none that fail alone as well."""
    try:
        return (make_batch(rows), rows) if rows else (None, [])
    except Exception:
        failed |= {row.request: fault for row in rows if (fault := _fault(row)) is not None}
    rows = [row for row in rows if row.request not in failed]
    try:
        return (make_batch(rows), rows) if rows else (None, [])
    except Exception as error:  # nobody's in particular
        failed |= {row.request: error for row in rows}
        return None, []


def _fault(row: ScheduledRow) -> Exception | None:
    try:
        make_batch([row])
    except Exception as error:
        return error
    return None
