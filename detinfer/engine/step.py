"""One step: scheduled, laid out, run and taken in; and who is to blame for what raises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from detinfer import ops
from detinfer.batch import Batch
from detinfer.engine.choosing import read_logits
from detinfer.engine.increments import failure_of, output_of
from detinfer.engine.layout import lay_out
from detinfer.engine.outcome import Increment, Outcome
from detinfer.engine.outputs import RequestOutput
from detinfer.engine.pooling import NO_STATES, Floats, states_of_rows
from detinfer.engine.request import Request, RequestState
from detinfer.engine.scheduler import ScheduledRow, Scheduler
from detinfer.runner.runner import Runner


@dataclass(slots=True)
class Counts:
    """What all steps came to, but for ``step_tokens``, which are the last one's."""

    fast_steps: int = 0
    deterministic_steps: int = 0
    step_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Stepper:
    """Takes requests on, one step at a time, and out when they end.

    Whatever raises for one request ends that request with an error, and no other. What is
    nobody's in particular, such as a failure in the model, ends all of the step.

    Args:
        runner: runs the model.
        scheduler: knows the same requests.
        requests: the unfinished ones by id, in order of arrival; those that end are taken out.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler, requests: dict[str, Request]) -> None:
        self.counts = Counts()
        self._runner = runner
        self._scheduler = scheduler
        self._requests = requests

    def step(self) -> list[RequestOutput]:
        """Run the model once; see ``Engine.step``."""
        failed: dict[Request, Exception] = {}
        self._scheduler.started.clear()
        batch, rows = lay_out(self._schedule(failed), failed)
        self.counts.step_tokens = 0 if batch is None else len(batch.input_ids)
        outputs = [] if batch is None else self._run(batch, rows, failed)
        self.discard(request.request_id for request in failed)
        return [failure_of(*one) for one in failed.items()] + outputs

    def tell(self, request: Request, new: Increment) -> RequestOutput:
        """Return an increment as it goes out; the last one takes its request out."""
        output = output_of(request, new)
        if new.finish_reason is not None:
            self._scheduler.finish(request)
            del self._requests[request.request_id]
        return output

    def discard(self, request_ids: Iterable[str]) -> None:
        """Take requests out, whatever was done to them by halves; see ``Engine.discard``."""
        gone = [self._requests[name] for name in request_ids if name in self._requests]
        if not gone:
            return
        for request in gone:
            request.state = RequestState.FINISHED
        self._scheduler.rebuild(self._requests.values())
        for request in gone:
            del self._requests[request.request_id]

    def _schedule(self, failed: dict[Request, Exception]) -> list[ScheduledRow]:
        """Return the next step's rows, laid out anew without whoever makes that fail."""
        while True:
            try:
                return self._scheduler.schedule()
            except Exception as error:
                if self._scheduler.current is None:
                    raise
                failed[self._scheduler.current] = error
                self.discard([self._scheduler.current.request_id])

    def _run(
        self, batch: Batch, rows: list[ScheduledRow], failed: dict[Request, Exception]
    ) -> list[RequestOutput]:
        """One forward pass, and what its rows make of it."""
        if batch.deterministic:
            self.counts.deterministic_steps += 1
        else:
            self.counts.fast_steps += 1
        try:
            with ops.use(self._runner.profile):
                outcomes = read_logits(self._runner.forward(batch), batch, rows)
                states = [NO_STATES] * len(rows)
                if batch.hidden_rows.size:
                    states = states_of_rows(self._runner.hidden, batch)
        except Exception as error:
            failed |= {row.request: error for row in rows}
            return []
        outputs = []
        for row, outcome, own in zip(rows, outcomes, states, strict=True):
            try:
                output = self._advance(row, outcome, own)
            except Exception as error:
                failed[row.request] = error
            else:
                outputs += [] if output is None else [output]
        return outputs

    def _advance(
        self, row: ScheduledRow, outcome: Outcome | Exception, states: Floats
    ) -> RequestOutput | None:
        """Hand a request what the step has brought it; its increment, if there is one."""
        if isinstance(outcome, Exception):
            raise outcome
        request, counts = row.request, self.counts
        prompt_left = max(0, request.prompt_tokens - request.num_computed)
        if request.pool is None:
            new = request.advance(row.num_tokens, row.draft, outcome)
        else:
            new = request.embed(row.num_tokens, states)
        self._scheduler.name_pages(request)
        counts.prompt_tokens += min(row.num_tokens, prompt_left)
        if new is None:
            return None
        counts.generated_tokens += len(new.token_ids)
        counts.drafted_tokens += len(row.draft)
        counts.accepted_tokens += new.accepted
        return self.tell(request, new)
