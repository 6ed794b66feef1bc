"""Loads on an engine in this process, where everything can be drawn: pages and limits too."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, NamedTuple

from detinfer.check.answer import Answer
from detinfer.check.load import Load, Placement, Row
from detinfer.check.target import Bounds, Prompt
from detinfer.engine.outputs import RequestOutput
from detinfer.errors import DetinferError

if TYPE_CHECKING:  # it loads torch, which a check of a server has no need of
    from detinfer.engine.engine import Engine


class EngineSubject:
    """Plays loads on an idle engine, which is left idle and with its own limits.

    Args:
        engine: serves nobody else meanwhile.
        max_rows: most requests in a load.
    """

    def __init__(self, engine: Engine, max_rows: int = 32) -> None:
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
        )
        self._engine = engine

    def stats(self) -> dict[str, int]:
        """See ``Subject.stats``."""
        return self._engine.stats()

    def play(self, load: Load) -> dict[int, Answer]:
        """See ``Subject.play``."""
        if self._engine.has_unfinished():
            raise DetinferError("check: the engine is busy, expected one that serves nobody else")
        game = _Game(self._engine, load)
        scheduler = self._engine.scheduler
        limits = scheduler.limits
        try:
            if isinstance(load.placement, Placement):
                if load.placement.cold:
                    self._engine.block_manager.forget()
                scheduler.limits = dataclasses.replace(
                    limits,
                    max_num_seqs=load.placement.max_num_seqs,
                    max_num_batched_tokens=load.placement.max_num_batched_tokens,
                    max_chunk=load.placement.max_chunk,
                )
            return game.play()
        finally:
            scheduler.limits = limits
            self._engine.abort_all("the load is over")
            self._engine.check_integrity()


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
        elif load.placement is not None:
            engine.block_manager.order()

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
            self._engine.add_request(request_id, self._token_ids(row.prompt), row.params)
            self._runs[request_id] = _Run(place, row, [])
        self._coming = self._coming[len(arrived) :]

    def _token_ids(self, prompt: Prompt) -> list[int]:
        return list(self._engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)

    def _abort(self, clock: int) -> None:
        for request_id, run in self._runs.items():
            after = run.row.abort_after
            if after is not None and clock == run.row.arrival + after:
                self._engine.abort(request_id)

    def _take(self, output: RequestOutput) -> None:
        run = self._runs[output.request_id]
        run.outputs.append(output)
        if run.row.target is None or output.finish_reason is None:
            return
        answer = Answer.of(run.outputs)
        if answer is None:
            raise DetinferError(
                f"load {self._load.number}: a run of prompt {run.row.target + 1} ended with "
                f"{output.finish_reason}: {output.error}"
            )
        self._answers[run.place] = answer
