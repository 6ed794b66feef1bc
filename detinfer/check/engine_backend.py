"""Loads on an engine in this process, where everything can be drawn: pages and limits too."""

from __future__ import annotations

import random

from detinfer.check.load import Bounds, Load, Row
from detinfer.check.result import Answer
from detinfer.config import PAGE_SIZE
from detinfer.engine.engine import Engine
from detinfer.engine.llm import Completion
from detinfer.engine.scheduler import Limits
from detinfer.errors import DetinferError


class EngineBackend:
    """Plays loads on an idle engine, which is left idle and with its own limits.

    Args:
        engine: serves nobody else meanwhile.
        max_rows: most requests in a load.
    """

    def __init__(self, engine: Engine, max_rows: int = 32) -> None:
        info, limits = engine.info, engine.scheduler.limits
        self.source = info.model_name
        self.fingerprint = info.system_fingerprint
        self.bounds = Bounds(
            vocab_size=info.vocab_size,
            longest=min(info.max_model_len, info.num_pages * PAGE_SIZE),
            max_rows=max_rows,
            allow_fast=info.allow_fast,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
        )
        self._engine = engine

    def play(self, load: Load) -> dict[int, Answer]:
        """See ``Backend.play``."""
        if self._engine.has_unfinished():
            raise DetinferError("check: the engine is busy, expected one that serves nobody else")
        game = _Game(self._engine, load)
        scheduler = self._engine.scheduler
        limits = scheduler.limits
        try:
            if load.placement is not None:
                scheduler.limits = Limits(
                    load.placement.max_num_seqs,
                    load.placement.max_num_batched_tokens,
                    load.placement.max_chunk,
                )
            return game.play()
        finally:
            scheduler.limits = limits
            self._engine.abort_all("the load is over")
            self._engine.check_integrity()


class _Game:
    """One load, step by step."""

    def __init__(self, engine: Engine, load: Load) -> None:
        self._engine = engine
        self._load = load
        self._coming = list(enumerate(load.rows))
        self._completions: dict[str, tuple[int, Row, Completion]] = {}
        self._answers: dict[int, Answer] = {}
        self._pages = random.Random(load.placement.page_seed) if load.placement else None

    def play(self) -> dict[int, Answer]:
        rows = self._load.rows
        # A step with anything to do computes a token at least.
        most_steps = rows[-1].arrival + len(rows) * self._engine.info.max_model_len
        for clock in range(most_steps + 1):
            self._admit(clock)
            self._abort(clock)
            self._step()
            if len(self._answers) == self._load.targets:
                return self._answers
        raise DetinferError(
            f"load {self._load.number}: {len(self._answers)} of {self._load.targets} runs have an "
            f"answer after {most_steps} steps"
        )

    def _admit(self, clock: int) -> None:
        arrived = [one for one in self._coming if one[1].arrival <= clock]
        if not arrived:
            return
        self._coming = self._coming[len(arrived) :]
        if self._pages is not None:
            self._engine.block_manager.shuffle(self._pages)
        for place, row in arrived:
            ids = row.prompt
            tokens = list(self._engine.tokenizer.encode(ids) if isinstance(ids, str) else ids)
            request_id = f"load-{self._load.number}-row-{place}"
            self._engine.add_request(request_id, tokens, row.params)
            fingerprint = self._engine.info.system_fingerprint
            completion = Completion(tokens, row.params.deterministic, fingerprint)
            self._completions[request_id] = place, row, completion

    def _abort(self, clock: int) -> None:
        for request_id, (_, row, _) in self._completions.items():
            if row.abort_after is not None and clock == row.arrival + row.abort_after:
                self._engine.abort(request_id)

    def _step(self) -> None:
        for output in self._engine.step():
            place, row, completion = self._completions[output.request_id]
            completion.add(output)
            if row.target is None or completion.finish_reason is None:
                continue
            if completion.finish_reason not in ("stop", "length"):
                raise DetinferError(
                    f"load {self._load.number}: prompt {row.target + 1} ended with "
                    f"{completion.finish_reason}: {completion.error}"
                )
            self._answers[place] = Answer(
                tuple(completion.token_ids),
                completion.text,
                completion.finish_reason,
                completion.digest,
            )
