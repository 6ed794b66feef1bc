"""Loads on an engine in this process, where everything can be drawn: pages and limits too."""

from __future__ import annotations

import dataclasses
import gc
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from detinfer.check.answer import Answer
from detinfer.check.grammars import PROBE
from detinfer.check.load import Load, Placement, Row
from detinfer.check.target import Bounds, Prompt, sampling
from detinfer.engine.increments import logger
from detinfer.engine.outputs import RequestOutput
from detinfer.errors import DetinferError, RequestError
from detinfer.params import constraint_of

if TYPE_CHECKING:  # they load torch, which a check of a server has no need of
    from detinfer.batch import Batch
    from detinfer.engine.engine import Engine


_SPOILED = 64  # free pages, those given out first: a pool may be larger than memory
_NAN = 0xFF  # bytes of ones are NaN in every format of theirs
_HELD, _FAILING, _PROBING = "check: held", "check: failing", "check: probing"


class EngineSubject:
    """Plays loads on an idle engine, which is left idle and with its own limits.

    Args:
        engine: serves nobody else meanwhile.
        max_rows: most requests in a load.
        again: makes the same engine anew, if that may be asked for; nobody else has ``engine``.
    """

    tries = 1

    def __init__(
        self, engine: Engine, max_rows: int = 32, again: Callable[[], Engine] | None = None
    ) -> None:
        info, limits = engine.info, engine.scheduler.limits
        self.source = info.model_name
        self.fingerprint, self.parts = info.system_fingerprint, info.fingerprint
        self.bounds = Bounds(
            info.vocab_size,
            info.longest,
            max_rows,
            info.allow_fast,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            num_pages=info.num_pages,
            threads=getattr(engine.runner, "threads", None),
            can_spoil=_pools(engine.runner) is not None,
            can_restart=again is not None,
            can_constrain=_can_constrain(engine),
            can_score=True,
        )
        self._engine = engine
        self._again = again
        self._before: Counter[str] = Counter()  # counts of engines that are gone

    def stats(self) -> dict[str, int]:
        """See ``Subject.stats``."""
        return {name: n + self._before[name] for name, n in self._engine.stats().items()}

    def play(self, load: Load) -> dict[int, Answer]:
        """See ``Subject.play``."""
        placement = load.placement if isinstance(load.placement, Placement) else None
        if placement is not None and placement.restarted and self._again is not None:
            self._restart(self._again)
        engine = self._engine
        if engine.has_unfinished():
            raise DetinferError("check: the engine is busy, expected one that serves nobody else")
        with ExitStack() as stack:
            stack.callback(engine.check_integrity)
            if placement is not None:
                stack.enter_context(_placed(engine, placement))
            game = _Game(engine, load)
            stack.callback(_mend, engine, game.spoiled)
            stack.callback(engine.abort_all, "the load is over")
            if placement is not None and placement.failed:
                game.fail_a_step()
            if placement is not None and placement.spoiled:
                game.spoil(engine.block_manager.next_free(_SPOILED))
            return game.play()

    def _restart(self, again: Callable[[], Engine]) -> None:
        self._before += Counter(self._engine.stats())
        del self._engine  # two of them may be more than there is memory for
        gc.collect()
        self._engine = again()
        if self._engine.info.system_fingerprint != self.fingerprint:
            raise DetinferError(
                f"check: made anew, the fingerprint {self.fingerprint} is "
                f"{self._engine.info.system_fingerprint}"
            )


@contextmanager
def _placed(engine: Engine, placement: Placement) -> Iterator[None]:
    """Set an engine up as a load was drawn, and put it back."""
    scheduler, pages, runner = engine.scheduler, engine.block_manager, engine.runner
    limits, threads = scheduler.limits, getattr(runner, "threads", None)
    drafts, caching = placement.max_with_drafts, scheduler.prefix_caching
    scheduler.limits = dataclasses.replace(
        limits,
        max_num_seqs=placement.max_num_seqs,
        max_num_batched_tokens=placement.max_num_batched_tokens,
        max_chunk=placement.max_chunk,
        max_with_drafts=limits.max_with_drafts if drafts is None else drafts,
    )
    scheduler.prefix_caching = caching and placement.shared
    if placement.threads is not None and threads is not None:
        _set_threads(runner, placement.threads)
    if placement.cold:
        pages.forget()
    pages.order()
    if placement.pages is not None and pages.num_free > placement.pages:
        pages.allocate(_HELD, pages.num_free - placement.pages)
    try:
        yield
    finally:
        scheduler.limits, scheduler.prefix_caching = limits, caching
        if threads is not None:
            _set_threads(runner, threads)
        if _HELD in pages.owners():
            pages.deallocate(_HELD)


def _can_constrain(engine: Engine) -> bool:
    """Return whether grammars compile for the model's tokenizer."""
    try:
        engine.add_request(_PROBING, [0], PROBE)
    except RequestError:
        return False
    engine.abort(_PROBING)
    return True


def _set_threads(runner: Any, threads: int) -> None:
    runner.threads = threads


def _pools(runner: Any) -> list[Any] | None:
    """Return the memory that pages are of, by page; None if it is not the CPU's."""
    from detinfer.ops import KVCache

    cache = getattr(runner, "cache", None)
    return [*cache.keys, *cache.values] if isinstance(cache, KVCache) else None


def _mend(engine: Engine, spoiled: list[int]) -> None:
    """Let no other load find what was spoiled for one."""
    free = engine.block_manager.next_free(engine.block_manager.num_pages)
    _fill(engine.runner, sorted({*spoiled} & {*free}), 0)


def _fill(runner: Any, pages: list[int], byte: int) -> None:
    for pool in (_pools(runner) or ()) if pages else ():
        pool.view("uint8")[pages] = byte


class _Run(NamedTuple):
    """One row, and what it has got so far."""

    place: int
    row: Row
    outputs: list[RequestOutput]


class _Game:
    """One load, step by step."""

    def __init__(self, engine: Engine, load: Load) -> None:
        self._engine = engine
        self._load = load
        self._coming = list(enumerate(load.rows))
        self._runs: dict[str, _Run] = {}
        self._answers: dict[int, Answer] = {}
        self._pages: random.Random | None = None
        if isinstance(load.placement, Placement) and load.placement.page_seed is not None:
            self._pages = random.Random(load.placement.page_seed)
        self.spoiled: list[int] = []  # pages that were filled with NaN

    def spoil(self, pages: list[int]) -> None:
        """Fill free pages with NaN: whoever reads what nobody has written shows it."""
        _fill(self._engine.runner, pages, _NAN)
        self.spoiled += pages

    def fail_a_step(self) -> None:
        """Let a step fail, of the load's longest run alone, and spoil what it was to write."""
        runs = [row for row in self._load.rows if row.target is not None]
        row = max(runs, key=lambda row: len(row.prompt))
        engine, pages = self._engine, list[int]()
        runner: Any = engine.runner
        engine.block_manager.forget()  # or some of its pages may have been written before
        engine.add_request(_FAILING, self._token_ids(row.prompt), sampling(row.params))

        def fail(batch: Batch) -> None:
            pages.extend(batch.block_tables[0].tolist())
            raise RuntimeError("a step that a check lets fail")

        runner.forward = fail
        disabled, logger.disabled = logger.disabled, True  # it is nothing to tell anybody
        try:
            engine.step()
        finally:
            logger.disabled = disabled
            del runner.forward  # the class has the real one
            engine.abort(_FAILING)
        self.spoil(pages)

    def play(self) -> dict[int, Answer]:
        rows = self._load.rows
        # A step with anything to do computes a token at least.
        most_steps = rows[-1].arrival + len(rows) * self._engine.info.max_model_len
        for clock in range(most_steps + 1):
            self._admit(clock)
            self._abort(clock)
            for output in self._engine.step():
                self._take(output)
            if len(self._answers) == self._load.targets:
                return self._answers
        raise DetinferError(
            f"load {self._load.number}: {len(self._answers)} of {self._load.targets} runs have an "
            f"answer after {most_steps} steps"
        )

    def _admit(self, clock: int) -> None:
        arrived = [(place, row) for place, row in self._coming if row.arrival <= clock]
        if arrived and self._pages is not None:
            self._engine.block_manager.shuffle(self._pages)
        for place, row in arrived:
            request_id = f"load-{self._load.number}-row-{place}"
            token_ids = self._token_ids(row.prompt)
            self._engine.add_request(request_id, token_ids, sampling(row.params))
            self._runs[request_id] = _Run(place, row, [])
        self._coming = self._coming[len(arrived) :]

    def _token_ids(self, prompt: Prompt) -> list[int]:
        return list(self._engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)

    def _abort(self, clock: int) -> None:
        for request_id, run in self._runs.items():
            after = run.row.abort_after
            if after is not None and clock == run.row.arrival + after:
                self._engine.abort(request_id)

    def _tells(self, row: Row) -> bool:
        """Return whether a failure is an answer like another.

        It may have read NaN that is not its own; and where a grammar ends in an error is a function
        of the answer's tokens.
        """
        return bool(self.spoiled) or constraint_of(sampling(row.params)) is not None

    def _take(self, output: RequestOutput) -> None:
        run = self._runs[output.request_id]
        run.outputs.append(output)
        if run.row.target is None or output.finish_reason is None:
            return
        answer = Answer.of(run.outputs)
        if answer is None and output.finish_reason == "error" and self._tells(run.row):
            answer = Answer.of_failure(run.outputs)
        if answer is None:
            raise DetinferError(
                f"load {self._load.number}: a run of prompt {run.row.target + 1} ended with "
                f"{output.finish_reason}: {output.error}"
            )
        self._answers[run.place] = answer
