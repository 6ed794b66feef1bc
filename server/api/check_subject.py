"""Loads on the engine of this server, beside whatever else it is serving."""

from __future__ import annotations

import asyncio
import threading
import uuid
from concurrent.futures import CancelledError, Future
from contextlib import aclosing
from typing import Any

from detinfer.check import Answer, Bounds, Load, Row
from detinfer.check.arrivals import TRIES
from detinfer.check.grammars import PROBE
from detinfer.check.target import sampling
from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.validation import encode_text
from detinfer.errors import DetinferError, QueueFullError, RequestError

MAX_ROWS = 8  # of a load: others are being served
_STEP = 0.02  # seconds that stand for one step between arrivals


async def can_constrain(engine: AsyncEngine) -> bool:
    """Return whether grammars compile for the engine's tokenizer."""
    try:
        async with aclosing(engine.generate([0], PROBE, f"check-{uuid.uuid4().hex}")) as outputs:
            async for _ in outputs:
                pass
    except RequestError:
        return False
    return True


class AsyncEngineSubject:
    """Plays loads from a thread, on the engine of the event loop that made it.

    Args:
        engine: serves others meanwhile.
        cache_salt: whose pages of the prefix cache the loads may share.
        constrain: whether answers may keep to a grammar.
    """

    tries = TRIES

    def __init__(self, engine: AsyncEngine, cache_salt: str, constrain: bool) -> None:
        info = engine.info
        self.source = info.model_name
        self.fingerprint, self.parts = info.system_fingerprint, info.fingerprint
        most = min(MAX_ROWS, info.max_num_seqs)
        self.bounds = Bounds(
            info.vocab_size,
            info.longest,
            most,
            info.allow_fast,
            can_constrain=constrain,
            can_score=True,
        )
        self._engine, self._salt = engine, cache_salt
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._cancelled = False
        self._playing: Future[Any] | None = None

    def stats(self) -> dict[str, int]:
        """See ``Subject.stats``."""
        stats: dict[str, int] = self._await(self._engine.stats())
        return stats

    def play(self, load: Load) -> dict[int, Answer]:
        """See ``Subject.play``."""
        answers: list[Answer | None] = self._await(self._play(load))
        return {place: answer for place, answer in enumerate(answers) if answer is not None}

    def cancel(self) -> None:
        """End the load being played, and every later one at once, with ``CancelledError``."""
        with self._lock:
            self._cancelled = True
            if self._playing is not None:
                self._playing.cancel()

    def _await(self, work: Any) -> Any:
        with self._lock:
            if self._cancelled:
                work.close()
                raise CancelledError
            self._playing = asyncio.run_coroutine_threadsafe(work, self._loop)
        return self._playing.result()

    async def _play(self, load: Load) -> list[Answer | None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask(row)) for row in load.rows]
        return [task.result() for task in tasks]

    async def _ask(self, row: Row) -> Answer | None:
        """Return the answer of a run; None of a neighbour, whom a full queue may well turn away."""
        await asyncio.sleep(row.arrival * _STEP)
        if row.target is not None:
            return await self._answer(row)
        patience = None if row.abort_after is None else (row.abort_after + 1) * _STEP
        try:
            async with asyncio.timeout(patience):
                await self._answer(row)
        except (TimeoutError, QueueFullError):
            pass
        return None

    async def _answer(self, row: Row) -> Answer:
        prompt = (
            encode_text(self._engine.tokenizer, row.prompt)
            if isinstance(row.prompt, str)
            else row.prompt
        )
        name = f"check-{uuid.uuid4().hex}"
        async with aclosing(
            self._engine.generate(prompt, sampling(row.params), name, cache_salt=self._salt)
        ) as outputs:
            given = [output async for output in outputs]
        if not given or given[-1].finish_reason is None:
            raise DetinferError("an answer had no end")
        answer = Answer.of(given)
        if answer is None:
            raise DetinferError(f"an answer ended with {given[-1].finish_reason}")
        return answer
